# SPDX-License-Identifier: Apache-2.0
"""Operations that are faster or smaller than what a composition of PyTorch's own gives."""

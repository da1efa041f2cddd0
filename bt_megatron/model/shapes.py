# SPDX-License-Identifier: Apache-2.0
"""The letters of the shape comments, once for the whole project.

    s  tokens per sequence (s = n * k)      n  blocks per sequence
    b  sequences per micro batch            k  tokens per block (block_length, L_B)
    h  width of the token decoder           g  width of the block decoder
    p  prefix vectors per block             r  expanded vectors per block (p, or k)
    q  positions the token decoder sees per block: p + k - 1 (prefix), or k
    v  vocabulary, padded to a multiple of t
    a  attention heads                      d  head width
    t  tensor-parallel size, as in [s/t, b, h]

Order is Megatron's: sequence first, [s, b, h]. In the token decoder the first
axis is q * n with row = position * n + block, so that sequence parallelism can
cut it for any p and k; only attention sees the folded form [q, n*b, a, d] with
column = block * b + sequence.
"""

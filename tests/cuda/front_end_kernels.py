"""What the front end that stands for NVIDIA's computes with: a kernel for each of its nodes, of float32."""

from __future__ import annotations

__all__ = ["SOURCE"]

SOURCE = r"""
typedef long long Word;
#define I ((Word)blockIdx.x * blockDim.x + threadIdx.x)
/* Extents and steps of up to six arrays of four axes, then whatever else a node has. */
struct Shapes { Word n[6][4], s[6][4], more[8]; };

__device__ Word at(const Shapes &g, int which, Word a, Word b, Word c, Word d) {
    const Word *s = g.s[which];
    return a * s[0] + b * s[1] + c * s[2] + d * s[3];
}
__device__ bool split(const Shapes &g, int which, Word *p) {
    Word i = I;
    for (int axis = 3; axis >= 0; axis--) { p[axis] = i % g.n[which][axis]; i /= g.n[which][axis]; }
    return i == 0;
}
extern "C" __global__ void pointwise(Word mode, const float *a, const float *b, float *to, Shapes g) {
    Word p[4];
    if (!split(g, 2, p)) return;
    float x = a[at(g, 0, p[0], p[1], p[2], p[3])], y = b[at(g, 1, p[0], p[1], p[2], p[3])];
    to[at(g, 2, p[0], p[1], p[2], p[3])] = mode == 0 ? x + y : mode == 1 ? (x > 0 ? x : 0) : (y > 0 ? x : 0);
}
extern "C" __global__ void matmul(const float *a, const float *b, float *to, Shapes g) {
    Word p[4];
    if (!split(g, 2, p)) return;
    float sum = 0;
    for (Word k = 0; k < g.n[0][3]; k++) sum += a[at(g, 0, p[0], p[1], p[2], k)] * b[at(g, 1, p[0], p[1], k, p[3])];
    to[at(g, 2, p[0], p[1], p[2], p[3])] = sum;
}
/* x, w, y; more: padding, stride, dilation, each of two axes. */
extern "C" __global__ void conv_fprop(const float *x, const float *w, float *y, Shapes g) {
    Word p[4];
    if (!split(g, 2, p)) return;
    Word each = g.n[1][1], first = p[1] / (g.n[1][0] / (g.n[0][1] / each)) * each;
    float sum = 0;
    for (Word c = 0; c < each; c++)
        for (Word i = 0; i < g.n[1][2]; i++)
            for (Word j = 0; j < g.n[1][3]; j++) {
                Word h = p[2] * g.more[2] + i * g.more[4] - g.more[0], v = p[3] * g.more[3] + j * g.more[5] - g.more[1];
                if (h < 0 || v < 0 || h >= g.n[0][2] || v >= g.n[0][3]) continue;
                sum += x[at(g, 0, p[0], first + c, h, v)] * w[at(g, 1, p[1], c, i, j)];
            }
    y[at(g, 2, p[0], p[1], p[2], p[3])] = sum;
}
/* Gradients, by one thread: of x (mode 0: a is dy, b is w) or of w (mode 1: a is x, b is dy). */
extern "C" __global__ void conv_backward(Word mode, const float *a, const float *b, float *to, Shapes g) {
    if (I) return;
    int x = mode ? 0 : 2, w = mode ? 2 : 1, y = mode ? 1 : 0;
    Word p[4];
    for (p[0] = 0; p[0] < g.n[2][0]; p[0]++) for (p[1] = 0; p[1] < g.n[2][1]; p[1]++)
        for (p[2] = 0; p[2] < g.n[2][2]; p[2]++) for (p[3] = 0; p[3] < g.n[2][3]; p[3]++)
            to[at(g, 2, p[0], p[1], p[2], p[3])] = 0;
    Word each = g.n[w][1], filters = g.n[w][0] / (g.n[x][1] / each);
    for (Word n = 0; n < g.n[y][0]; n++) for (Word o = 0; o < g.n[y][1]; o++)
        for (Word r = 0; r < g.n[y][2]; r++) for (Word q = 0; q < g.n[y][3]; q++)
            for (Word c = 0; c < each; c++) for (Word i = 0; i < g.n[w][2]; i++) for (Word j = 0; j < g.n[w][3]; j++) {
                Word h = r * g.more[2] + i * g.more[4] - g.more[0], v = q * g.more[3] + j * g.more[5] - g.more[1];
                if (h < 0 || v < 0 || h >= g.n[x][2] || v >= g.n[x][3]) continue;
                Word image = at(g, x, n, o / filters * each + c, h, v), weight = at(g, w, o, c, i, j);
                if (mode) to[weight] += a[image] * b[at(g, y, n, o, r, q)];
                else to[image] += a[at(g, y, n, o, r, q)] * b[weight];
            }
}
/* q, k, v, y, stats; more: causal, whether stats are wanted. */
extern "C" __global__ void sdpa(
    const float *q, const float *k, const float *v, float *y, float *stats, float scale, Shapes g) {
    Word rows = g.n[0][2], heads = g.n[0][1], i = I % rows, h = I / rows % heads, b = I / rows / heads;
    if (b >= g.n[0][0]) return;
    Word hk = h / (heads / g.n[1][1]), columns = g.more[0] && i + 1 < g.n[1][2] ? i + 1 : g.n[1][2];
    float most = -INFINITY, sum = 0;
    for (int turn = 0; turn < 2; turn++)
        for (Word j = 0; j < columns; j++) {
            float s = 0;
            for (Word d = 0; d < g.n[0][3]; d++) s += q[at(g, 0, b, h, i, d)] * k[at(g, 1, b, hk, j, d)];
            if (turn == 0) most = s * scale > most ? s * scale : most;
            else sum += expf(s * scale - most);
        }
    if (g.more[1]) stats[at(g, 4, b, h, i, 0)] = most + logf(sum);
    for (Word d = 0; d < g.n[2][3]; d++) y[at(g, 3, b, h, i, d)] = 0;
    for (Word j = 0; j < columns; j++) {
        float s = 0;
        for (Word d = 0; d < g.n[0][3]; d++) s += q[at(g, 0, b, h, i, d)] * k[at(g, 1, b, hk, j, d)];
        for (Word d = 0; d < g.n[2][3]; d++)
            y[at(g, 3, b, h, i, d)] += expf(s * scale - most) / sum * v[at(g, 2, b, hk, j, d)];
    }
}
/* Shapes 0 to 4: q and dq, k and dk, v and dv, y and dy, stats. By one thread. */
extern "C" __global__ void sdpa_backward(
    const float *q, const float *k, const float *v, const float *y, const float *dy, const float *stats, float *dq,
    float *dk, float *dv, float scale, Shapes g) {
    if (I) return;
    float *made[3] = {dq, dk, dv};
    for (int which = 0; which < 3; which++)
        for (Word b = 0; b < g.n[which][0]; b++) for (Word h = 0; h < g.n[which][1]; h++)
            for (Word i = 0; i < g.n[which][2]; i++) for (Word d = 0; d < g.n[which][3]; d++)
                made[which][at(g, which, b, h, i, d)] = 0;
    Word each = g.n[0][1] / g.n[1][1];
    for (Word b = 0; b < g.n[0][0]; b++) for (Word h = 0; h < g.n[0][1]; h++) for (Word i = 0; i < g.n[0][2]; i++) {
        Word hk = h / each, columns = g.more[0] && i + 1 < g.n[1][2] ? i + 1 : g.n[1][2];
        float both = 0;
        for (Word d = 0; d < g.n[3][3]; d++) both += dy[at(g, 3, b, h, i, d)] * y[at(g, 3, b, h, i, d)];
        for (Word j = 0; j < columns; j++) {
            float s = 0, dp = 0;
            for (Word d = 0; d < g.n[0][3]; d++) s += q[at(g, 0, b, h, i, d)] * k[at(g, 1, b, hk, j, d)];
            for (Word d = 0; d < g.n[2][3]; d++) dp += dy[at(g, 3, b, h, i, d)] * v[at(g, 2, b, hk, j, d)];
            float p = expf(s * scale - stats[at(g, 4, b, h, i, 0)]), ds = p * (dp - both) * scale;
            for (Word d = 0; d < g.n[2][3]; d++) dv[at(g, 2, b, hk, j, d)] += p * dy[at(g, 3, b, h, i, d)];
            for (Word d = 0; d < g.n[0][3]; d++) {
                dq[at(g, 0, b, h, i, d)] += ds * k[at(g, 1, b, hk, j, d)];
                dk[at(g, 1, b, hk, j, d)] += ds * q[at(g, 0, b, h, i, d)];
            }
        }
    }
}
"""

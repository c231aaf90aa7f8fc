/* SPDX-License-Identifier: Apache-2.0
 *
 * x_l = A_l x_{l-1} + b_l, x_0 = 0, as one would write it.  A dense (L,B,W,W) or diagonal (L,B,W);
 * b, x (L,B,W).  The width W is a constant, so that the compiler can unroll. */

void dense(long L, long B, const float *restrict A, const float *restrict b, float *restrict x) {
    for (long l = 0; l < L; l++) {
        for (long s = 0; s < B; s++, A += W * W, b += W, x += W) {
            for (int i = 0; i < W; i++) {
                float sum = 0;
                for (int j = 0; l > 0 && j < W; j++)
                    sum += A[i * W + j] * (x - B * W)[j];
                x[i] = sum + b[i];
            }
        }
    }
}

void diagonal(long L, long B, const float *restrict A, const float *restrict b, float *restrict x) {
    for (long i = 0; i < B * W; i++)
        x[i] = b[i];
    for (long i = B * W; i < L * B * W; i++)
        x[i] = A[i] * x[i - B * W] + b[i];
}

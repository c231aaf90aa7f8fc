/* SPDX-License-Identifier: Apache-2.0
 *
 * Plain loops; see the header.  A step keeps its intermediates in a struct of (up to WIDEST) elements
 * that forward, Jacobian and vjp all read.
 */
#include "chain_reference.h"

#include "activation_reference.h"
#include "backend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WIDEST = 4096, MOST_LAYERS = 4 };

/* value as rounding might have left it, where the terms summed up to magnitude in absolute value */
static double rounded(noise *n, double value, double magnitude) {
    return n->roundoff > 0 ? value + n->roundoff * magnitude * rng_uniform(&n->random, -1, 1) : value;
}

static const double *parameter(const dpcr_chain *chain, dpcr_parameter which, int64_t l, int64_t size) {
    const double *data = chain->parameter[which];
    return data ? data + l * size : NULL;
}

/* sum_j a_j x_j + bias over count terms with strides, errors as of a sum of count terms */
static double dot(int64_t count, const double *a, int64_t stride, const double *x, double bias, noise *n) {
    double sum = bias, size = fabs(bias);
    for (int64_t j = 0; j < count; j++) {
        sum += a[j * stride] * x[j];
        size += fabs(a[j * stride] * x[j]);
    }
    return rounded(n, sum, size * (2 + sqrt((double)count)));
}

/* ---- one step of one sample ----------------------------------------------------------------- */

typedef struct step {
    double normed[WIDEST]; /* (z - mean) / deviation, before gamma and beta; z without norm */
    double input[WIDEST];  /* of W1; in a layer of DPCR_LAYERS, where the norm comes after it, as before */
    double before[WIDEST]; /* (h) what the activation is applied to */
    double hidden[WIDEST]; /* (h) activation */
    double inverse;        /* 1 / deviation */
} step;

static bool has_norm(const dpcr_chain *c) {
    return (c->step == DPCR_RESIDUAL || c->step == DPCR_LAYERS) && c->norm != DPCR_NO_NORM;
}

static void norm_forward(const dpcr_chain *c, int64_t l, const double *z, step *s, noise *n) {
    const double *gamma = parameter(c, DPCR_GAMMA, l, c->w), *beta = parameter(c, DPCR_BETA, l, c->w);
    const bool none = !has_norm(c);
    double mean = 0, square = 0, largest = 0;
    for (int64_t i = 0; i < c->w; i++) largest = fmax(largest, fabs(z[i]));
    for (int64_t i = 0; i < c->w && !none && c->norm == DPCR_LAYER_NORM; i++) mean += z[i] / (double)c->w;
    mean = none ? 0 : rounded(n, mean, 4 * largest);
    for (int64_t i = 0; i < c->w; i++) square += (z[i] - mean) * (z[i] - mean) / (double)c->w;
    s->inverse = none ? 1 : 1 / sqrt(square + c->norm_eps);
    s->inverse = none ? 1 : rounded(n, s->inverse, 4 * s->inverse);
    for (int64_t i = 0; i < c->w; i++) {
        s->normed[i] = (z[i] - mean) * s->inverse;
        s->input[i] = s->normed[i] * (gamma ? gamma[i] : 1) + (beta ? beta[i] : 0);
        if (!none)
            s->input[i] = rounded(n, s->input[i], 4 * (fabs(s->input[i]) + (beta ? fabs(beta[i]) : 0)));
    }
}

/* s->before -> s->hidden */
static void activate(const dpcr_chain *c, step *s, noise *n) {
    const bool tails =
        c->activation >= DPCR_SILU && c->activation <= DPCR_GELU_TANH; /* u times a small difference */
    for (int64_t i = 0; i < c->h; i++) {
        const double y = reference_activation(c->activation, c->activation_parameter, s->before[i]);
        s->hidden[i] = rounded(n, y, 4 * (fabs(y) + (tails ? fabs(s->before[i]) : 0)));
        const int branch = reference_branch(c->activation, c->activation_parameter, s->before[i]);
        n->branches = (n->branches ^ (uint64_t)branch) * UINT64_C(0x100000001b3) + 1;
    }
}

/* W1 x + b1 -> u (h) */
static void linear_forward(const dpcr_chain *c, int64_t l, const double *x, double *u, noise *n) {
    const double *W1 = parameter(c, DPCR_W1, l, c->h * c->w), *b1 = parameter(c, DPCR_B1, l, c->h);
    for (int64_t i = 0; i < c->h; i++) u[i] = dot(c->w, W1 + i * c->w, 1, x, b1 ? b1[i] : 0, n);
}

/* Layer at = l M + m of input a -> s->hidden */
static void layer_forward(const dpcr_chain *c, int64_t at, const double *a, step *s, noise *n) {
    double u[WIDEST];
    linear_forward(c, at, a, u, n);
    norm_forward(c, at, u, s, n);
    memcpy(s->before, s->input, (size_t)c->w * sizeof(double));
    activate(c, s, n);
}

static void layers_forward(const dpcr_chain *c, int64_t l, const double *z, double *next, step *layer,
                           noise *n) {
    const double *a = z;
    for (int64_t m = 0; m < c->layers; m++) {
        layer_forward(c, l * c->layers + m, a, &layer[m], n);
        a = layer[m].hidden;
    }
    for (int64_t i = 0; i < c->w; i++) {
        const double branch = c->scale * a[i], skip = c->skip ? z[i] : 0;
        next[i] = rounded(n, skip + branch, fabs(skip) + fabs(branch));
    }
}

/* A step of denoising: the layers (input and normed unused), x_m, and the network's output. */
typedef struct denoise {
    step layer[MOST_LAYERS];
    double x[MOST_LAYERS][WIDEST], net[WIDEST];
} denoise;

/* all but the noise, which is the sample's */
static void denoise_forward(const dpcr_chain *c, int64_t l, const double *z, double *next, denoise *d,
                            noise *n) {
    const int64_t w = c->w, h = c->h, M = c->layers;
    const double *b = parameter(c, DPCR_B1, l, (M + 1) * h), *b2 = parameter(c, DPCR_B2, 0, w);
    const double *W1 = parameter(c, DPCR_W1, 0, h * w), *W2 = parameter(c, DPCR_W2, 0, w * h);
    const double *coefficients = parameter(c, DPCR_COEFFICIENTS, l, 2);
    for (int64_t m = 0; m <= M; m++) {
        const double *WH = m > 0 ? parameter(c, DPCR_WH, m - 1, h * h) : NULL;
        step *s = &d->layer[m];
        for (int64_t i = 0; i < h; i++) {
            const double bias = b ? b[m * h + i] : 0;
            s->before[i] =
                m > 0 ? dot(h, WH + i * h, 1, d->x[m - 1], bias, n) : dot(w, W1 + i * w, 1, z, bias, n);
        }
        activate(c, s, n);
        for (int64_t i = 0; i < h; i++) {
            const double from = m > 0 ? d->x[m - 1][i] : 0;
            d->x[m][i] = rounded(n, from + s->hidden[i], m > 0 ? fabs(from) + fabs(s->hidden[i]) : 0);
        }
    }
    for (int64_t i = 0; i < w; i++) {
        d->net[i] = dot(h, W2 + i * h, 1, d->x[M], b2 ? b2[i] : 0, n);
        const double kept = coefficients[0] * z[i], added = coefficients[1] * d->net[i];
        next[i] = rounded(n, kept + added, 2 * (fabs(kept) + fabs(added)));
    }
}

static void step_forward(const dpcr_chain *c, int64_t l, const double *z, double *next, step *s, noise *n) {
    const double *W2 = parameter(c, DPCR_W2, l, c->w * c->h), *b2 = parameter(c, DPCR_B2, l, c->w);
    if (c->step == DPCR_LAYERS) {
        step layer[MOST_LAYERS];
        layers_forward(c, l, z, next, layer, n);
        return;
    }
    if (c->step == DPCR_DENOISE) {
        denoise d;
        denoise_forward(c, l, z, next, &d, n);
        return;
    }
    norm_forward(c, l, z, s, n);
    linear_forward(c, l, s->input, s->before, n);
    activate(c, s, n);
    for (int64_t i = 0; i < c->w; i++) {
        if (c->step == DPCR_MLP) {
            next[i] = s->hidden[i];
            continue;
        }
        const double branch =
            c->scale
            * (c->step == DPCR_EULER ? s->hidden[i]
                                     : dot(c->h, W2 + i * c->h, 1, s->hidden, b2 ? b2[i] : 0, n));
        next[i] = rounded(n, z[i] + branch, fabs(z[i]) + fabs(branch));
    }
}

/* ---- vector-Jacobian product of one step ---------------------------------------------------- */

/* Where a step's parameter gradients go; NULL: not wanted. */
typedef struct slots {
    double *gradient[DPCR_PARAMETERS];
    double *size[DPCR_PARAMETERS]; /* sums of absolute values, which the roundings are relative to */
} slots;

static void credit(slots *to, dpcr_parameter which, int64_t index, double value) {
    if (!to || !to->gradient[which]) return;
    to->gradient[which][index] += value;
    to->size[which][index] += fabs(value);
}

/* g of the norm's output -> added to gz */
static void norm_backward(const dpcr_chain *c, int64_t l, const step *s, const double *g, double *gz,
                          slots *to, noise *n) {
    const double *gamma = parameter(c, DPCR_GAMMA, l, c->w);
    double mean = 0, along = 0, size = 0;
    for (int64_t i = 0; i < c->w; i++) {
        const double scaled = g[i] * (gamma ? gamma[i] : 1);
        credit(to, DPCR_GAMMA, i, g[i] * s->normed[i]);
        credit(to, DPCR_BETA, i, g[i]);
        mean += c->norm == DPCR_LAYER_NORM ? scaled / (double)c->w : 0;
        along += scaled * s->normed[i] / (double)c->w;
        size = fmax(size, fabs(scaled));
    }
    for (int64_t i = 0; i < c->w; i++) {
        const double inner = g[i] * (gamma ? gamma[i] : 1) - mean - s->normed[i] * along;
        const double part = rounded(n, s->inverse * inner, 8 * s->inverse * size * (1 + fabs(s->normed[i])));
        gz[i] = rounded(n, gz[i] + part, fabs(gz[i]) + fabs(part));
    }
}

/* Elements of a parameter that a step sees; in one layer of DPCR_LAYERS. */
static int64_t parameter_elements(const dpcr_chain *c, int which) {
    const int64_t biases = c->step == DPCR_DENOISE ? c->layers + 1 : 1;
    const int64_t sizes[DPCR_PARAMETERS] = {
        c->h * c->w, biases * c->h, c->w * c->h, c->w, c->w, c->w, c->layers * c->h * c->h, 2, c->B * c->w};
    return sizes[which];
}

static bool is_shared(const dpcr_chain *c, int which) {
    return c->step == DPCR_DENOISE
           && (which == DPCR_W1 || which == DPCR_WH || which == DPCR_W2 || which == DPCR_B2);
}

static int64_t step_elements(const dpcr_chain *c, int which) {
    return parameter_elements(c, which) * (c->step == DPCR_LAYERS ? c->layers : 1);
}

/* Layer at = l M + m: gradient g (w) of its output becomes that of its input a */
static void layer_backward(const dpcr_chain *c, int64_t at, const double *a, const step *s, double *g,
                           slots *to, noise *n) {
    const double *W = parameter(c, DPCR_W1, at, c->w * c->w);
    double normed[WIDEST], inner[WIDEST];
    memset(inner, 0, (size_t)c->w * sizeof(double));
    for (int64_t i = 0; i < c->w; i++) {
        const double slope = reference_slope(c->activation, c->activation_parameter, s->before[i]);
        normed[i] = g[i] * rounded(n, slope, 4 * (1 + fabs(slope)));
    }
    if (has_norm(c))
        norm_backward(c, at, s, normed, inner, to, n);
    else
        memcpy(inner, normed, (size_t)c->w * sizeof(double));
    for (int64_t i = 0; i < c->w; i++) {
        credit(to, DPCR_B1, i, inner[i]);
        for (int64_t j = 0; j < c->w; j++) credit(to, DPCR_W1, i * c->w + j, inner[i] * a[j]);
        g[i] = dot(c->w, W + i, c->w, inner, 0, n);
    }
}

static void layers_backward(const dpcr_chain *c, int64_t l, const double *z, const double *g, double *gz,
                            const slots *to, noise *n) {
    step layer[MOST_LAYERS];
    double next[WIDEST], ga[WIDEST];
    layers_forward(c, l, z, next, layer, n);
    for (int64_t i = 0; i < c->w; i++) ga[i] = c->scale * g[i];
    for (int64_t m = c->layers - 1; m >= 0; m--) {
        slots own = {{0}, {0}};
        for (int i = 0; i < DPCR_PARAMETERS; i++) {
            if (!to || !to->gradient[i]) continue;
            own.gradient[i] = to->gradient[i] + m * parameter_elements(c, i);
            own.size[i] = to->size[i] + m * parameter_elements(c, i);
        }
        layer_backward(c, l * c->layers + m, m > 0 ? layer[m - 1].hidden : z, &layer[m], ga, &own, n);
    }
    for (int64_t i = 0; i < c->w; i++)
        gz[i] = c->skip ? rounded(n, g[i] + ga[i], fabs(g[i]) + fabs(ga[i])) : ga[i];
}

/* gx (h) of x_m becomes that of x_{m-1}, the gradient of u_0 where m is 0 */
static void denoise_layer_backward(const dpcr_chain *c, int64_t m, const denoise *d, const double *z,
                                   double *gx, slots *to, noise *n) {
    const int64_t w = c->w, h = c->h;
    double gu[WIDEST];
    for (int64_t k = 0; k < h; k++) {
        const double slope = reference_slope(c->activation, c->activation_parameter, d->layer[m].before[k]);
        gu[k] = gx[k] * rounded(n, slope, 4 * (1 + fabs(slope)));
        credit(to, DPCR_B1, m * h + k, gu[k]);
        for (int64_t j = 0; m == 0 && j < w; j++) credit(to, DPCR_W1, k * w + j, gu[k] * z[j]);
        for (int64_t j = 0; m > 0 && j < h; j++)
            credit(to, DPCR_WH, ((m - 1) * h + k) * h + j, gu[k] * d->x[m - 1][j]);
    }
    if (m == 0) memcpy(gx, gu, (size_t)h * sizeof(double));
    for (int64_t j = 0; m > 0 && j < h; j++) {
        const double part = dot(h, parameter(c, DPCR_WH, m - 1, h * h) + j, h, gu, 0, n);
        gx[j] = rounded(n, gx[j] + part, fabs(gx[j]) + fabs(part));
    }
}

static void denoise_backward(const dpcr_chain *c, int64_t l, const double *z, const double *g, double *gz,
                             slots *to, noise *n) {
    const int64_t w = c->w, h = c->h;
    const double *W1 = parameter(c, DPCR_W1, 0, h * w), *W2 = parameter(c, DPCR_W2, 0, w * h);
    const double *coefficients = parameter(c, DPCR_COEFFICIENTS, l, 2);
    double next[WIDEST], gnet[WIDEST], gx[WIDEST];
    denoise d;
    denoise_forward(c, l, z, next, &d, n);
    for (int64_t i = 0; i < w; i++) {
        gnet[i] = coefficients[1] * g[i];
        credit(to, DPCR_COEFFICIENTS, 0, g[i] * z[i]);
        credit(to, DPCR_COEFFICIENTS, 1, g[i] * d.net[i]);
        credit(to, DPCR_B2, i, gnet[i]);
        for (int64_t k = 0; k < h; k++) credit(to, DPCR_W2, i * h + k, gnet[i] * d.x[c->layers][k]);
    }
    for (int64_t k = 0; k < h; k++) gx[k] = dot(w, W2 + k, h, gnet, 0, n);
    for (int64_t m = c->layers; m >= 0; m--) denoise_layer_backward(c, m, &d, z, gx, to, n);
    for (int64_t j = 0; j < w; j++) {
        const double kept = coefficients[0] * g[j], part = dot(h, W1 + j, w, gx, 0, n);
        gz[j] = rounded(n, kept + part, 2 * (fabs(kept) + fabs(part)));
    }
}

/* Gradient g of f_l(z) -> gz, parameter gradients added to `to` */
static void step_backward(const dpcr_chain *c, int64_t l, const double *z, const double *g, double *gz,
                          slots *to, noise *n) {
    const double *W1 = parameter(c, DPCR_W1, l, c->h * c->w), *W2 = parameter(c, DPCR_W2, l, c->w * c->h);
    const bool residual = c->step == DPCR_RESIDUAL, norm = has_norm(c);
    const bool straight = c->step != DPCR_MLP; /* z is a term of f(z) */
    step s;
    double next[WIDEST], out[WIDEST], inner[WIDEST], input[WIDEST];
    if (c->step == DPCR_LAYERS) {
        layers_backward(c, l, z, g, gz, to, n);
        return;
    }
    if (c->step == DPCR_DENOISE) {
        denoise_backward(c, l, z, g, gz, to, n);
        return;
    }
    step_forward(c, l, z, next, &s, n);
    for (int64_t i = 0; i < c->w; i++) {
        out[i] = straight ? c->scale * g[i] : g[i];
        credit(to, DPCR_B2, i, out[i]);
        for (int64_t k = 0; k < c->h && residual; k++)
            credit(to, DPCR_W2, i * c->h + k, out[i] * s.hidden[k]);
    }
    for (int64_t k = 0; k < c->h; k++) {
        const double slope = reference_slope(c->activation, c->activation_parameter, s.before[k]);
        const double arrived = residual ? dot(c->w, W2 + k, c->h, out, 0, n) : out[k];
        inner[k] = arrived * rounded(n, slope, 4 * (1 + fabs(slope)));
        credit(to, DPCR_B1, k, inner[k]);
        for (int64_t j = 0; j < c->w; j++) credit(to, DPCR_W1, k * c->w + j, inner[k] * s.input[j]);
    }
    for (int64_t j = 0; j < c->w; j++) {
        input[j] = dot(c->h, W1 + j, c->w, inner, 0, n);
        gz[j] = norm ? g[j] : straight ? rounded(n, g[j] + input[j], fabs(g[j]) + fabs(input[j])) : input[j];
    }
    if (norm) norm_backward(c, l, &s, input, gz, to, n);
}

/* ---- whole chains --------------------------------------------------------------------------- */

void reference_propagate(const dpcr_chain *c, int64_t first, int64_t last, const double *starts, double *ends,
                         double *states, noise *n) {
    for (int64_t b = 0; b < c->B; b++) {
        double z[WIDEST];
        memcpy(z, starts + b * c->w, (size_t)c->w * sizeof(double));
        for (int64_t l = first; l < last; l++) {
            double next[WIDEST];
            step s;
            step_forward(c, l, z, next, &s, n);
            const double *added = parameter(c, DPCR_NOISE, l, c->B * c->w);
            for (int64_t i = 0; i < c->w && added; i++) {
                const double own = added[b * c->w + i];
                next[i] = rounded(n, next[i] + own, fabs(next[i]) + fabs(own));
            }
            memcpy(z, next, (size_t)c->w * sizeof(double));
            if (states) memcpy(states + ((l - first) * c->B + b) * c->w, z, (size_t)c->w * sizeof(double));
        }
        memcpy(ends + b * c->w, z, (size_t)c->w * sizeof(double));
    }
}

/* Row i of a product of Jacobians is the vjp of basis vector i along the whole segment. */
void reference_tangents(const dpcr_chain *c, int64_t first, int64_t last, const double *starts,
                        const double *states, double *tangents, noise *n) {
    for (int64_t b = 0; b < c->B; b++)
        for (int64_t i = 0; i < c->w; i++) {
            double g[WIDEST], gz[WIDEST];
            for (int64_t j = 0; j < c->w; j++) g[j] = j == i;
            for (int64_t l = last - 1; l >= first; l--) {
                const double *z =
                    l > first ? states + ((l - 1 - first) * c->B + b) * c->w : starts + b * c->w;
                step_backward(c, l, z, g, gz, NULL, n);
                memcpy(g, gz, (size_t)c->w * sizeof(double));
            }
            memcpy(tangents + (b * c->w + i) * c->w, g, (size_t)c->w * sizeof(double));
        }
}

/* Step l of all samples: adjoint (B,w) of z_l becomes that of z_{l-1}. */
static void backward_step(const dpcr_chain *c, const dpcr_pullback *pass, int64_t l, double *adjoint,
                          noise *n) {
    slots to = {{0}, {0}};
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        const size_t bytes = (size_t)step_elements(c, i) * sizeof(double);
        if (!pass->gparameter[i]) continue;
        to.gradient[i] = (double *)pass->gparameter[i] + (is_shared(c, i) ? 0 : l * step_elements(c, i));
        to.size[i] = allocate(bytes);
        memset(to.size[i], 0, bytes);
        for (int64_t k = 0; k < step_elements(c, i); k++)
            if (is_shared(c, i))
                to.size[i][k] = fabs(to.gradient[i][k]); /* of the later steps, to which it is added */
            else
                to.gradient[i][k] = 0;
    }
    for (int64_t b = 0; b < c->B; b++) {
        const double *z = l > 0 ? (const double *)pass->states + ((l - 1) * c->B + b) * c->w
                                : (const double *)pass->z0 + b * c->w;
        const double *extra = pass->gstates ? (const double *)pass->gstates + (l * c->B + b) * c->w : NULL;
        double g[WIDEST];
        for (int64_t i = 0; i < c->w; i++) {
            const double above = adjoint[b * c->w + i];
            g[i] = extra ? rounded(n, above + extra[i], fabs(above) + fabs(extra[i])) : above;
        }
        for (int64_t i = 0; i < c->w; i++) credit(&to, DPCR_NOISE, b * c->w + i, g[i]);
        step_backward(c, l, z, g, adjoint + b * c->w, &to, n);
    }
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        for (int64_t k = 0; k < step_elements(c, i) && to.gradient[i]; k++)
            to.gradient[i][k] = rounded(n, to.gradient[i][k], to.size[i][k] * (2 + sqrt((double)c->B)));
        free(to.size[i]);
    }
}

void reference_backward(const dpcr_chain *c, const dpcr_pullback *pass, noise *n) {
    const size_t bytes = (size_t)(c->B * c->w) * sizeof(double);
    double *adjoint = allocate(bytes);
    memset(adjoint, 0, bytes);
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (pass->gparameter[i] && is_shared(c, i))
            memset(pass->gparameter[i], 0, (size_t)step_elements(c, i) * sizeof(double));
    if (pass->gz) memcpy(adjoint, pass->gz, bytes);
    for (int64_t l = c->L - 1; l >= 0; l--) backward_step(c, pass, l, adjoint, n);
    if (pass->gz0) memcpy(pass->gz0, adjoint, bytes);
    free(adjoint);
}

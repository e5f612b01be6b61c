/* Every kernel of cpu.c, on random numbers and for each instruction set of this processor, beside the same written
   plainly in double: values, and gradients along a random direction beside the difference quotient of the plain version.
   It needs neither Python nor torch, so that it also runs where these do not: test_platforms.py builds it for other
   processors and systems, and runs it in their emulators. Prints one line for each instruction set; exit status 1 where
   numbers differ. */

#include "../../mambaad_cli/model/kernels/cpu.c"

#include <math.h>
#include <stdio.h>

enum { MOST_INPUTS = 6 };
static const char *const NAMES[] = {"portable", "AVX2", "AVX-512"};
static int failures;

/* A kernel's call and the plain version of it. Gradients come in `copies` that are to be summed. */
typedef struct {
    const char *name;
    const void *work;
    void (*plain)(const void *work, double **inputs, double *y);
    int inputs;
    const float *input[MOST_INPUTS];
    int64_t count[MOST_INPUTS];
    const float *gradient[MOST_INPUTS];
    int64_t copies[MOST_INPUTS];
    int64_t outputs;
    const float *y, *dy;
} Case;

static double uniform(void) { /* of -1 to 1 (xorshift, Marsaglia, 2003) */
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (double)(state >> 11) / (double)(1ull << 52) - 1;
}

static void *memory(int64_t count, size_t size) {
    void *found = allocate((size_t)count * size);
    if (!found) abort();
    memset(found, 0, (size_t)count * size);
    return found;
}

static float *room(int64_t count) { return memory(count, sizeof(float)); }

static float *numbers(int64_t count, double scale, double offset) {
    float *found = room(count);
    for (int64_t i = 0; i < count; i++) found[i] = (float)(uniform() * scale + offset);
    return found;
}

static void check(const char *name, int isa, double found, double expected, double tolerance) {
    if (fabs(found - expected) <= tolerance) return; /* not a number fails too */
    printf("%s, %s: %.9g instead of %.9g, more than %.1g apart\n", NAMES[isa], name, found, expected, tolerance);
    failures++;
}

static void check_values(const Case *c, int isa, double tolerance) {
    double *inputs[MOST_INPUTS], *y = memory(c->outputs, sizeof(double)), largest = 0;
    for (int i = 0; i < c->inputs; i++) {
        inputs[i] = memory(c->count[i], sizeof(double));
        for (int64_t j = 0; j < c->count[i]; j++) inputs[i][j] = c->input[i][j];
    }
    c->plain(c->work, inputs, y);
    for (int64_t i = 0; i < c->outputs; i++) largest = fmax(largest, fabs(y[i]));
    for (int64_t i = 0; i < c->outputs; i++) check(c->name, isa, c->y[i], y[i], tolerance * largest);
    for (int i = 0; i < c->inputs && c->dy; i++) { /* the slope of sum(dy y) along a random direction of one input */
        const double step = 1e-4;
        double slope = 0, quotient = 0, size = 0;
        double *direction = memory(c->count[i], sizeof(double));
        for (int64_t j = 0; j < c->count[i]; j++) {
            direction[j] = uniform();
            double gradient = 0;
            for (int64_t copy = 0; copy < c->copies[i]; copy++) gradient += c->gradient[i][copy * c->count[i] + j];
            slope += gradient * direction[j], size += fabs(gradient * direction[j]);
        }
        for (int side = -1; side <= 1; side += 2) {
            for (int64_t j = 0; j < c->count[i]; j++) inputs[i][j] = c->input[i][j] + side * step * direction[j];
            c->plain(c->work, inputs, y);
            for (int64_t j = 0; j < c->outputs; j++) quotient += side * c->dy[j] * y[j] / (2 * step);
        }
        for (int64_t j = 0; j < c->count[i]; j++) inputs[i][j] = c->input[i][j];
        char name[64];
        snprintf(name, sizeof name, "%s, gradient of input %d", c->name, i);
        check(name, isa, slope, quotient, 1e-4 * size);
        release(direction);
    }
    for (int i = 0; i < c->inputs; i++) release(inputs[i]);
    release(y);
}

static double silu(double x) { return x / (1 + exp(-x)); }

static void plain_scan(const void *work, double **in, double *y) {
    const Scan *s = work;
    const double *u = in[0], *x = in[1], *dt_weight = in[2], *dt_bias = in[3], *A = in[4], *D = in[5];
    memset(y, 0, s->b * s->l * s->d * sizeof(double));
    for (int64_t b = 0; b < s->b; b++)
        for (int64_t k = 0; k < s->k; k++)
            for (int64_t d = 0; d < s->d; d++) {
                double h[64] = {0};
                for (int64_t t = 0; t < s->l; t++) {
                    const int64_t cell = b * s->l + s->order[k * s->l + t], channel = k * s->d + d;
                    const double *row = x + (cell * s->k + k) * (s->r + 2 * s->n), *B = row + s->r, *C = B + s->n;
                    double dt = dt_bias[channel], sum = D[channel] * u[cell * s->d + d];
                    for (int64_t j = 0; j < s->r; j++) dt += dt_weight[channel * s->r + j] * row[j];
                    dt = log1p(exp(dt));
                    for (int64_t n = 0; n < s->n; n++) {
                        h[n] = exp(dt * A[channel * s->n + n]) * h[n] + dt * B[n] * u[cell * s->d + d];
                        sum += C[n] * h[n];
                    }
                    y[cell * s->d + d] += sum;
                }
            }
}

static void check_scan(int isa, int64_t threads, int64_t d, int64_t n, int64_t r) {
    Scan s = {.b = 2, .l = 75, .k = 2, .d = d, .n = n, .r = r, .groups = d > 64 ? 2 : 1};
    const int64_t cells = s.b * s.l, row = r + 2 * n, channels = s.k * d;
    int32_t *order = memory(s.k * s.l, sizeof *order);
    for (int64_t t = 0; t < s.l; t++) order[t] = (int32_t)t, order[s.l + t] = (int32_t)(t * 37 % s.l);
    s.u = numbers(cells * d, 1, 0), s.x = numbers(cells * s.k * row, 1, 0), s.dt_weight = numbers(channels * r, 1, 0);
    s.dt_bias = numbers(channels, 1, -1), s.A = numbers(channels * n, 2, -2.1), s.D = numbers(channels, 1, 0);
    s.order = order, s.y = room(cells * d), s.dy = numbers(cells * d, 1, 0);
    s.border = room(s.b * s.k * ceil_div(s.l, TILE) * n * d);
    s.du = room(cells * d), s.dx = room(s.groups * cells * s.k * row), s.d_dt_weight = room(s.b * channels * r);
    s.d_dt_bias = room(s.b * channels), s.dA = room(s.b * channels * n), s.dD = room(s.b * d);
    if (mambaad_scan_forward(&s, isa, threads, NULL) || mambaad_scan_backward(&s, isa, threads, NULL)) abort();
    float *dD = room(s.b * channels); /* of each direction */
    for (int64_t i = 0; i < s.b * channels; i++) dD[i] = s.dD[i / channels * d + i % d];
    Case c = {"scan", &s, plain_scan, 6, {s.u, s.x, s.dt_weight, s.dt_bias, s.A, s.D},
              {cells * d, cells * s.k * row, channels * r, channels, channels * n, channels},
              {s.du, s.dx, s.d_dt_weight, s.d_dt_bias, s.dA, dD}, {1, s.groups, s.b, s.b, s.b, s.b},
              cells * d, s.y, s.dy};
    check_values(&c, isa, 1e-4);
}

static void plain_norm(const void *work, double **in, double *y) {
    const Norm *s = work;
    for (int64_t i = 0; i < s->b * s->c; i++) {
        const int64_t start = i / s->c * s->l * s->c + i % s->c;
        double mean = 0, square = 0;
        for (int64_t t = 0; t < s->l; t++) mean += in[0][start + t * s->c] / s->l;
        for (int64_t t = 0; t < s->l; t++) square += pow(in[0][start + t * s->c] - mean, 2) / s->l;
        for (int64_t t = 0; t < s->l; t++)
            y[start + t * s->c] = silu((in[0][start + t * s->c] - mean) / sqrt(square + 1e-5));
    }
}

static void check_norm(int isa, int64_t threads, int64_t channels) {
    Norm s = {.b = 2, .l = 75, .c = channels};
    const int64_t count = s.b * s.l * s.c;
    s.x = numbers(count, 3, 1), s.y = room(count), s.moments = room(s.b * 2 * s.c);
    if (mambaad_normed_silu(&s, isa, threads, NULL)) abort();
    s.dy = numbers(count, 1, 0), s.dx = room(count);
    if (mambaad_normed_silu(&s, isa, threads, NULL)) abort();
    Case c = {"norm", &s, plain_norm, 1, {s.x}, {count}, {s.dx}, {1}, count, s.y, s.dy};
    check_values(&c, isa, 2e-5);
}

static void plain_gated(const void *work, double **in, double *y) {
    const Gated *g = work;
    for (int64_t row = 0; row < g->rows; row++) {
        const double *x = in[0] + row * g->c, *gate = in[1] + row * g->c;
        double mean = 0, square = 0;
        for (int64_t i = 0; i < g->c; i++) mean += x[i] / g->c;
        for (int64_t i = 0; i < g->c; i++) square += pow(x[i] - mean, 2) / g->c;
        for (int64_t i = 0; i < g->c; i++)
            y[row * g->c + i] = ((x[i] - mean) / sqrt(square + 1e-5) * in[2][i] + in[3][i]) * silu(gate[i]);
    }
}

static void check_gated(int isa, int64_t threads, int64_t channels) {
    Gated g = {.rows = 21, .c = channels, .parts = 3};
    const int64_t count = g.rows * g.c;
    g.x = numbers(count, 3, 1), g.gate = numbers(count, 3, 0), g.weight = numbers(g.c, 1, 1);
    g.bias = numbers(g.c, 1, 0), g.y = room(count), g.moments = room(g.rows * 2);
    if (mambaad_gated_norm(&g, isa, threads, NULL)) abort();
    g.dy = numbers(count, 1, 0), g.dx = room(count), g.d_gate = room(count), g.d_affine = room(g.parts * 2 * g.c);
    if (mambaad_gated_norm(&g, isa, threads, NULL)) abort();
    float *affine = room(2 * g.parts * g.c); /* all parts of the weight, then all of the bias */
    for (int64_t i = 0; i < 2 * g.parts; i++)
        memcpy(affine + (i % 2 * g.parts + i / 2) * g.c, g.d_affine + i * g.c, g.c * sizeof(float));
    Case c = {"gated norm", &g, plain_gated, 4, {g.x, g.gate, g.weight, g.bias}, {count, count, g.c, g.c},
              {g.dx, g.d_gate, affine, affine + g.parts * g.c}, {1, 1, g.parts, g.parts}, count, g.y, g.dy};
    check_values(&c, isa, 2e-5);
}

static void plain_depthwise(const void *work, double **in, double *y) {
    const Depthwise *s = work;
    const int64_t before = s->size / 2;
    for (int64_t i = 0; i < s->b * s->h * s->w * s->c; i++) {
        const int64_t channel = i % s->c, column = i / s->c % s->w, row = i / s->c / s->w % s->h;
        double sum = in[2][channel];
        for (int64_t tap = 0; tap < s->size * s->size; tap++) {
            const int64_t down = tap / s->size - before, right = tap % s->size - before;
            if (row + down < 0 || row + down >= s->h || column + right < 0 || column + right >= s->w) continue;
            sum += in[1][tap * s->c + channel] * in[0][i + (down * s->w + right) * s->c];
        }
        y[i] = sum;
    }
}

static void check_depthwise(int isa, int64_t threads, int64_t size) {
    Depthwise s = {.b = 2, .h = 19, .w = 13, .c = 37, .size = size}, back, weights;
    const int64_t count = s.b * s.h * s.w * s.c, taps = size * size * s.c;
    s.x = numbers(count, 1, 0), s.weight = numbers(taps, 1, 0), s.bias = numbers(s.c, 1, 0), s.y = room(count);
    float *dy = numbers(count, 1, 0), *dx = room(count), *split = room(s.b * (taps + s.c));
    if (mambaad_depthwise(&s, isa, threads, NULL)) abort();
    back = s, back.x = dy, back.y = dx, back.bias = NULL, back.flipped = 1;
    weights = s, weights.dy = dy, weights.d_weight = room(s.b * (taps + s.c));
    if (mambaad_depthwise(&back, isa, threads, NULL) || mambaad_depthwise(&weights, isa, threads, NULL)) abort();
    for (int64_t b = 0; b < s.b; b++) { /* the taps of all images, then the biases */
        memcpy(split + b * taps, weights.d_weight + b * (taps + s.c), taps * sizeof(float));
        memcpy(split + s.b * taps + b * s.c, weights.d_weight + b * (taps + s.c) + taps, s.c * sizeof(float));
    }
    Case c = {"depthwise", &s, plain_depthwise, 3, {s.x, s.weight, s.bias}, {count, taps, s.c},
              {dx, split, split + s.b * taps}, {1, s.b, s.b}, count, s.y, dy};
    check_values(&c, isa, 1e-5);
}

static void plain_nearest(const void *work, double **in, double *y) {
    const Nearest *s = work;
    (void)in;
    for (int64_t i = 0; i < s->rows; i++) {
        double apart[256], sum = 0;
        for (int64_t j = 0; j < s->m; j++) {
            double square = 0;
            for (int64_t k = 0; k < s->c; k++) square += pow(s->points[i * s->c + k] - s->originals[j * s->c + k], 2);
            apart[j] = sqrt(square);
        }
        for (int64_t found = 0; found < s->count; found++) {
            int64_t best = 0;
            for (int64_t j = 1; j < s->m; j++) best = apart[j] < apart[best] ? j : best;
            sum += apart[best] / s->spacing[best] / s->count;
            apart[best] = INFINITY;
        }
        y[i] = sum;
    }
}

static void check_nearest(int isa, int64_t threads, int64_t channels) {
    Nearest s = {.rows = 203, .c = channels, .pairs = (channels + 1) / 2, .m = 53, .count = 3, .kept = 8};
    const int64_t panels = ceil_div(s.m, PANEL);
    s.largest = smaller(32767, (1ll << 31) / (127 * 2 * s.pairs) - 1);
    s.points = numbers(s.rows * s.c, 1, 0), s.spacing = numbers(s.m, 0.3, 1), s.distances = room(s.rows);
    int16_t *patches = memory(panels * s.pairs * PANEL * 2, sizeof *patches);
    float *steps = room(panels * PANEL), *lengths = room(panels * PANEL), *originals = room(s.m * s.c);
    for (int64_t j = 0; j < panels * PANEL; j++) {
        if (j < s.m) steps[j] = (float)(uniform() * 0.001 + 0.008);
        for (int64_t k = 0; k < s.c && j < s.m; k++) {
            const int16_t value = (int16_t)(uniform() * 127.5);
            patches[((j / PANEL * s.pairs + k / 2) * PANEL + j % PANEL) * 2 + k % 2] = value;
            originals[j * s.c + k] = value * steps[j];
            lengths[j] += originals[j * s.c + k] * originals[j * s.c + k];
        }
        if (j >= s.m) lengths[j] = INFINITY;
    }
    s.patches = patches, s.steps = steps, s.lengths = lengths, s.originals = originals;
    if (mambaad_nearest(&s, isa, threads, NULL)) abort();
    Case c = {"nearest", &s, plain_nearest, .outputs = s.rows, .y = s.distances};
    check_values(&c, isa, 1e-5);
}

static double relu6(double x) { return fmin(fmax(x, 0), 6); }

static void plain_inverted(const void *work, double **in, double *y) {
    const Inverted *s = work;
    (void)in;
    double *wide = memory(s->h * s->w * s->wide, sizeof(double)), *deep = memory(s->wide, sizeof(double));
    for (int64_t b = 0; b < s->b; b++) {
        for (int64_t i = 0; i < s->h * s->w * s->wide; i++) {
            const int64_t channel = i % s->wide, column = i / s->wide % s->w, row = i / s->wide / s->w;
            double sum = s->expand_bias[channel];
            for (int64_t k = 0; k < s->c; k++) {
                double x = 0;
                const int64_t image = b * 3 + k / 9; /* of the stem */
                const int64_t down = 2 * row - s->stem_top + k / 3 % 3, right = 2 * column - s->stem_left + k % 3;
                if (!s->stem)
                    x = s->x[((b * s->h + row) * s->w + column) * s->c + k];
                else if (down >= 0 && down < s->stem_h && right >= 0 && right < s->stem_w)
                    x = (s->x[(image * s->stem_h + down) * s->stem_w + right] - s->mean[k / 9]) * s->scale[k / 9];
                sum += x * s->expand[(channel / PANEL * s->c + k) * PANEL + channel % PANEL];
            }
            wide[i] = relu6(sum);
        }
        for (int64_t i = 0; i < s->rows * s->columns; i++) {
            const int64_t top = i / s->columns * s->stride - s->top, left = i % s->columns * s->stride - s->left;
            for (int64_t channel = 0; channel < s->wide; channel++) {
                double sum = s->taps_bias[channel];
                for (int64_t tap = 0; tap < s->size * s->size; tap++) {
                    const int64_t row = top + tap / s->size, column = left + tap % s->size;
                    const int64_t place = (channel / PANEL * s->size * s->size + tap) * PANEL + channel % PANEL;
                    if (row >= 0 && row < s->h && column >= 0 && column < s->w)
                        sum += s->taps[place] * wide[(row * s->w + column) * s->wide + channel];
                }
                deep[channel] = relu6(sum);
            }
            for (int64_t out = 0; out < s->narrow; out++) {
                const int64_t place = (b * s->rows * s->columns + i) * s->narrow + out;
                double sum = s->project_bias[out] + (s->shortcut ? s->x[place] : 0);
                for (int64_t k = 0; k < s->wide; k++)
                    sum += deep[k] * s->project[(out / PANEL * s->wide + k) * PANEL + out % PANEL];
                y[place] = sum;
            }
        }
    }
    release(wide), release(deep);
}

static void check_inverted(int isa, int64_t threads, Inverted s) {
    const int64_t panels = ceil_div(s.narrow, PANEL);
    s.b = 2, s.rows = ceil_div(s.h, s.stride), s.columns = ceil_div(s.w, s.stride), s.wide = 48;
    s.top = s.left = (s.size - 1) / 2;
    s.x = numbers(s.stem ? s.b * 3 * s.stem_h * s.stem_w : s.b * s.h * s.w * s.c, 1, 0.5);
    s.expand = numbers(s.wide * s.c, 0.5, 0), s.expand_bias = numbers(s.wide, 1, 1);
    s.taps = numbers(s.wide * s.size * s.size, 0.5, 0.1), s.taps_bias = numbers(s.wide, 1, 0);
    s.project = numbers(panels * s.wide * PANEL, 1, 0), s.project_bias = numbers(panels * PANEL, 1, 0);
    s.mean = numbers(3, 0.1, 0.5), s.scale = numbers(3, 1, 4), s.y = room(s.b * s.rows * s.columns * s.narrow);
    if (mambaad_inverted(&s, isa, threads, NULL)) abort();
    Case c = {"inverted residual", &s, plain_inverted, .outputs = s.b * s.rows * s.columns * s.narrow, .y = s.y};
    check_values(&c, isa, 1e-5);
}

int main(void) {
    for (int isa = 0; isa <= mambaad_best_isa(); isa++) {
        for (int64_t threads = 1; threads <= 3; threads += 2) {
            check_scan(isa, threads, 100, 16, 3);
            check_scan(isa, threads, 13, 5, 4);
            check_norm(isa, threads, 70);
            check_norm(isa, threads, 5);
            check_gated(isa, threads, 70);
            for (int64_t size = 3; size <= 7; size += 2) check_depthwise(isa, threads, size);
            check_nearest(isa, threads, 63);
            check_nearest(isa, threads, 40);
            check_inverted(isa, threads, (Inverted){.h = 11, .w = 37, .c = 24, .narrow = 24, .size = 3, .stride = 1, .shortcut = 1});
            check_inverted(isa, threads, (Inverted){.h = 14, .w = 23, .c = 40, .narrow = 40, .size = 5, .stride = 2});
            check_inverted(isa, threads, (Inverted){.h = 9, .w = 9, .c = 8, .narrow = 48, .size = 5, .stride = 1});
            check_inverted(isa, threads, (Inverted){.h = 13, .w = 18, .c = 27, .narrow = 16, .size = 3, .stride = 2,
                                                    .stem = 1, .stem_h = 25, .stem_w = 36, .stem_top = 1});
        }
        printf("%s: %s\n", NAMES[isa], failures ? "numbers differ" : "all kernels agree");
    }
    return failures > 0;
}

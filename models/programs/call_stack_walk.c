/* One walk of the call-stack process: CallStack.conditional and CallStack.advance, row by row.
 *
 * The walk is sequential and its networks are tiny, so that almost all of its time in tensor code is the cost of
 * starting operations. Here a PHP step takes about a microsecond. It draws samples only; whatever needs a gradient is
 * scored by the tensor code. call_stack_native.py checks what this indexes by and calls it, and a test holds it to
 * the tensor code, step by step.
 *
 * The file is C for a CPU, where one thread walks row after row, and CUDA for a GPU, where a warp walks a row. The
 * lanes of a warp share the loops over the numbers of a layer, frame or output, and each of them knows what was drawn.
 * What other lanes have written is read after a SYNC. One seed walks the same way on both, as far as rounding goes.
 */
#ifdef __CUDACC__
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef unsigned char uint8_t;
#define INFINITY __int_as_float(0x7f800000)
#define FUNCTION static __device__
#define LANE (threadIdx.x % 32)
#define LANES 32
#define SYNC() __syncwarp()
#else
#include <math.h>
#include <stdint.h>
#ifndef LANES /* a test runs the lanes as threads */
#define LANE 0
#define LANES 1
#define SYNC()
#endif
#define FUNCTION static inline
#endif
#define SHARED(i, n) (int64_t i = LANE; i < (n); i += LANES)

typedef struct {              /* one perceptron a procedure */
    int64_t layers;           /* 0: there are none */
    int64_t tanh;             /* hidden units: tanh, else ReLU */
    const int64_t *sizes;     /* [layers + 1] */
    const float **weights;    /* layers x [H, in, out] */
    const float **biases;     /* layers x [H, out] */
} Networks;

typedef struct {              /* in words of eight bytes, in the order of call_stack_native.py */
    int64_t procedures, actions, choices, width, depth, features, times, inputs;
    int64_t batch, horizon, posterior, greedy;
    uint64_t seed;
    int64_t widest;           /* layer of any network */
    Networks choose, argue;
    int64_t fields;           /* one-hot fields of all slots */
    const int64_t *field;     /* [fields, 4]: slot, first parameter, place in the vector, size */
    const uint8_t *allowed;   /* posterior: [H, A + 1, K]; prior: [H, K] */
    const float *counts;      /* [H] */
    const float *context;     /* [B, times, C] */
    const float *task;        /* [B, W] */
    const int64_t *actions_seen;   /* [B, times], of a posterior */
    const float *arguments_seen;   /* [B, times, W], where they are observed, else null */
    float *scratch;           /* [inputs + 2 widest + depth (3 + 2 W)], on a GPU for each row */
    float *z;                 /* [B, horizon, 1 + W], zeros */
    int64_t *steps;           /* [B] */
} Walk;

FUNCTION uint64_t scrambled(uint64_t z) { /* splitmix64 */
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}

/* Number n of a stream, in (0, 1). */
FUNCTION double uniform(uint64_t stream, uint64_t n) {
    return ((scrambled(stream + n * 0x9E3779B97F4A7C15ULL) >> 11) + 0.5) * (1.0 / 9007199254740992.0);
}

/* One-hot inputs are mostly zero, and skipped. */
FUNCTION void layer(const float *x, const float *w, const float *b, int64_t in, int64_t out, float *y) {
#if LANES == 1 /* whole rows of weights at a time, in vectors */
    for (int64_t o = 0; o < out; o++) y[o] = b[o];
    for (int64_t i = 0; i < in; i++) {
        const float xi = x[i];
        if (xi == 0.0f) continue;
        const float *row = w + i * out;
        for (int64_t o = 0; o < out; o++) y[o] += xi * row[o];
    }
#else
    for SHARED(o, out) {
        float sum = b[o];
        for (int64_t i = 0; i < in; i++)
            if (x[i] != 0.0f) sum += x[i] * w[i * out + o];
        y[o] = sum;
    }
#endif
}

/* Evaluate the network of procedure h; even and odd are as wide as its widest layer, and one of them is returned. */
FUNCTION float *evaluate(const Networks *n, int64_t h, const float *x, float *even, float *odd) {
    const float *from = x;
    float *to = even;
    for (int64_t l = 0; l < n->layers; l++) {
        const int64_t in = n->sizes[l], size = n->sizes[l + 1];
        layer(from, n->weights[l] + h * in * size, n->biases[l] + h * size, in, size, to);
        if (l == n->layers - 1) break;
        for SHARED(o, size) /* not hiding a NaN */
            to[o] = n->tanh ? tanhf(to[o]) : to[o] < 0.0f ? 0.0f : to[o];
        SYNC();
        from = to;
        to = to == even ? odd : even;
    }
    return to; /* without a SYNC: each lane may read and write its own numbers */
}

/* Draw one of n by their logits, which this spoils; -1 where all of them are NaN. */
FUNCTION int64_t draw(float *logits, int64_t n, const Walk *w, uint64_t stream, uint64_t *drawn) {
    SYNC(); /* others may share a layer otherwise */
    int64_t best = -1;
    for (int64_t k = 0; k < n; k++)
        if (logits[k] == logits[k] && (best < 0 || logits[k] > logits[best])) best = k;
    const float top = best < 0 ? 0.0f : logits[best];
    SYNC();
    if (w->greedy || best < 0) return best;
    for SHARED(k, n) logits[k] = logits[k] == logits[k] ? expf(logits[k] - top) : 0.0f;
    SYNC();
    double left = 0.0; /* the distribution function at the outcome is what remains of it */
    for (int64_t k = 0; k < n; k++) left += logits[k];
    left *= uniform(stream, (*drawn)++);
    for (int64_t k = 0; k < n; k++) {
        left -= logits[k];
        if (left < 0.0) { best = k; break; }
    }
    SYNC();
    return best;
}

/* Walk row b to its end or the horizon. steps[b] receives how many steps were taken, horizon + 1 where the stack was
 * not empty at the horizon, or -1 - i where step i had no possible choice (all masked, the logits are NaN, or a call
 * deeper than the tree). */
FUNCTION void walk_row(const Walk *w, int64_t b, float *scratch) {
    const int64_t H = w->procedures, A = w->actions, K = w->choices, W = w->width, C = w->features, F = 3 + 2 * W;
    const int64_t null = K - 1;
    float *x = scratch, *even = x + w->inputs, *odd = even + w->widest, *stack = odd + w->widest;
    const uint64_t stream = w->seed + 0xD1B54A32D192ED03ULL * (uint64_t)(b + 1);
    uint64_t drawn = 0;
    int64_t depth = 1, time = 0, i = 0, stuck = 0;
    for SHARED(f, F) stack[f] = f == 2 ? (float)null : f < 3 || f >= 3 + W ? 0.0f : w->task[b * W + f - 3];
    SYNC();
    for (; depth > 0 && i < w->horizon && !stuck; i++) {
        float *frame = stack + (depth - 1) * F, *out = w->z + (b * w->horizon + i) * (1 + W);
        const int64_t h = (int64_t)frame[0], last = (int64_t)frame[2], seen = b * w->times + time;
        const float count = frame[1];
        /* inputs: context, counter, one-hot h-, u, u- */
        for SHARED(f, C) x[f] = w->context[seen * C + f];
        if (LANE == 0) x[C] = count * w->counts[h];
        for SHARED(k, K) x[C + 1 + k] = k == last ? 1.0f : 0.0f;
        for SHARED(f, 2 * W) x[C + 1 + K + f] = frame[3 + f];
        SYNC();
        float *logits = evaluate(&w->choose, h, x, even, odd);
        const int64_t action = w->posterior ? w->actions_seen[seen] : 0;
        const uint8_t *may = w->allowed + (w->posterior ? (h * (A + 1) + action) * K : h * K);
        for SHARED(k, K)
            if (!may[k] || (k == null && count == 0.0f)) logits[k] = -1e9f;
        const int64_t choice = draw(logits, K, w, stream, &drawn);
        if (choice < 0 || !may[choice] || (choice == null && count == 0.0f) || (choice < H && depth == w->depth)) {
            stuck = 1 + i;
            break;
        }
        if (LANE == 0) out[0] = (float)choice;
        const int is_action = choice >= H && choice < null;
        const int64_t slot = choice == null ? null + h : choice;
        if (w->posterior && is_action && w->arguments_seen) {
            for SHARED(f, W) out[1 + f] = w->arguments_seen[seen * W + f];
        } else if (w->argue.layers) {
            float *argue = 0;
            for (int64_t f = 0; f < w->fields; f++) {
                const int64_t *field = w->field + 4 * f;
                if (field[0] != slot) continue;
                if (!argue) argue = evaluate(&w->argue, h, x, even, odd);
                const int64_t value = draw(argue + field[1], field[3], w, stream, &drawn);
                if (value < 0) stuck = 1 + i;
                else if (LANE == 0) out[1 + field[2] + value] = 1.0f;
            }
        }
        SYNC();
        /* Algorithm 1 */
        if (choice == null) {
            depth--;
            if (depth > 0)
                for SHARED(f, W) frame[3 + W + f - F] = out[1 + f];
        } else {
            if (LANE == 0) {
                frame[1] = count + 1.0f;
                frame[2] = (float)choice;
            }
            for SHARED(f, W) frame[3 + W + f] = is_action ? out[1 + f] : 0.0f; /* u- of an action */
            if (is_action) {
                if (time < w->times - 1) time++;
            } else {
                float *callee = frame + F;
                for SHARED(f, F)
                    callee[f] = f == 0 ? (float)choice : f == 2 ? (float)null : f == 1 || f >= 3 + W ? 0.0f : out[f - 2];
                depth++;
            }
        }
        SYNC();
    }
    if (LANE == 0) w->steps[b] = stuck ? -stuck : depth > 0 ? w->horizon + 1 : i;
}

#ifdef __CUDACC__
extern "C" __global__ void pyrocontrol_walk(const Walk *w) {
    const int64_t b = (blockIdx.x * (int64_t)blockDim.x + threadIdx.x) / 32;
    const int64_t room = w->inputs + 2 * w->widest + w->depth * (3 + 2 * w->width);
    if (b < w->batch) walk_row(w, b, w->scratch + b * room);
}
#elif LANES == 1
void pyrocontrol_walk(const Walk *w) {
    for (int64_t b = 0; b < w->batch; b++) walk_row(w, b, w->scratch);
}
#endif

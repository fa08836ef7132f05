/* One walk of the call-stack process on a CPU: CallStack.conditional and CallStack.advance, row by row.
 *
 * The walk is sequential and its networks are tiny, so that almost all of its time in tensor code is the cost of
 * starting operations. Here a PHP step takes about a microsecond. It draws samples only; whatever needs a gradient is
 * scored by the tensor code. call_stack_native.py checks what this indexes by and calls it, and a test holds it to
 * the tensor code, step by step.
 */
#include <math.h>
#include <stdint.h>

typedef struct {              /* one perceptron a procedure */
    int64_t layers;           /* 0: there are none */
    int64_t tanh;             /* hidden units: tanh, else ReLU */
    const int64_t *sizes;     /* [layers + 1] */
    const float **weights;    /* layers x [H, in, out] */
    const float **biases;     /* layers x [H, out] */
} Networks;

typedef struct {
    int64_t procedures, actions, choices, width, depth, features, times, inputs;
    Networks choose, argue;
    int64_t fields;           /* one-hot fields of all slots */
    const int64_t *field;     /* [fields, 4]: slot, first parameter, place in the vector, size */
    const uint8_t *allowed;   /* posterior: [H, A + 1, K]; prior: [H, K] */
    const float *counts;      /* [H] */
    int32_t posterior;
} Stack;

static inline uint64_t next(uint64_t *s) { /* splitmix64 */
    uint64_t z = (*s += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}

static inline float gumbel(uint64_t *s) {
    double u = ((next(s) >> 11) + 0.5) * 0x1.0p-53;
    return (float)-log(-log(u));
}

static void layer(const float *x, const float *w, const float *b, int64_t in, int64_t out, float *y) {
    for (int64_t o = 0; o < out; o++) y[o] = b[o];
    for (int64_t i = 0; i < in; i++) {
        const float xi = x[i];
        if (xi == 0.0f) continue; /* one-hot inputs are mostly zero */
        const float *row = w + i * out;
        for (int64_t o = 0; o < out; o++) y[o] += xi * row[o];
    }
}

/* Evaluate the network of procedure h; even and odd are as wide as its widest layer, and one of them is returned. */
static float *evaluate(const Networks *n, int64_t h, const float *x, float *even, float *odd) {
    const float *from = x;
    float *to = even;
    for (int64_t l = 0; l < n->layers; l++) {
        const int64_t in = n->sizes[l], size = n->sizes[l + 1];
        layer(from, n->weights[l] + h * in * size, n->biases[l] + h * size, in, size, to);
        if (l == n->layers - 1) break;
        for (int64_t o = 0; o < size; o++) /* not hiding a NaN */
            to[o] = n->tanh ? tanhf(to[o]) : to[o] < 0.0f ? 0.0f : to[o];
        from = to;
        to = to == even ? odd : even;
    }
    return to;
}

static int64_t draw(const float *logits, int64_t n, int greedy, uint64_t *rng) {
    int64_t best = -1; /* what remains if all of them are NaN */
    float top = -INFINITY;
    for (int64_t k = 0; k < n; k++) {
        const float value = logits[k] + (greedy ? 0.0f : gumbel(rng));
        if (value > top) { top = value; best = k; }
    }
    return best;
}

/* Walk every row to its end or the horizon. z [B, horizon, 1 + W] must hold zeros. steps [B] receives how many steps
 * were taken, horizon + 1 where the stack was not empty at the horizon, or -1 - i where step i had no possible choice
 * (all masked, the logits are NaN, or a call deeper than the tree). scratch holds inputs + 2 * widest + depth * (3 + 2 W)
 * floats. */
void pyrocontrol_walk(const Stack *s, int64_t batch, int64_t horizon, const float *features, const float *task,
                      const int64_t *actions, const float *arguments, int32_t greedy, uint64_t seed, int64_t widest,
                      float *scratch, float *z, int64_t *steps) {
    const int64_t H = s->procedures, A = s->actions, K = s->choices, W = s->width, C = s->features, F = 3 + 2 * W;
    const int64_t null = K - 1;
    float *x = scratch, *even = x + s->inputs, *odd = even + widest, *stack = odd + widest;
    for (int64_t b = 0; b < batch; b++) {
        uint64_t rng = seed + 0xD1B54A32D192ED03ULL * (uint64_t)(b + 1);
        int64_t depth = 1, time = 0, i = 0, stuck = 0;
        for (int64_t f = 0; f < F; f++) stack[f] = 0.0f;
        stack[2] = (float)null;
        for (int64_t f = 0; f < W; f++) stack[3 + f] = task[b * W + f];
        for (; depth > 0 && i < horizon && !stuck; i++) {
            float *frame = stack + (depth - 1) * F, *out = z + (b * horizon + i) * (1 + W);
            const int64_t h = (int64_t)frame[0], last = (int64_t)frame[2];
            /* inputs: context, counter, one-hot h-, u, u- */
            const float *now = features + (b * s->times + time) * C;
            for (int64_t f = 0; f < C; f++) x[f] = now[f];
            x[C] = frame[1] * s->counts[h];
            for (int64_t k = 0; k < K; k++) x[C + 1 + k] = 0.0f;
            x[C + 1 + last] = 1.0f;
            for (int64_t f = 0; f < 2 * W; f++) x[C + 1 + K + f] = frame[3 + f];
            float *logits = evaluate(&s->choose, h, x, even, odd);
            const int64_t action = s->posterior ? actions[b * s->times + time] : 0;
            const uint8_t *may = s->allowed + (s->posterior ? (h * (A + 1) + action) * K : h * K);
            for (int64_t k = 0; k < K; k++)
                if (!may[k] || (k == null && frame[1] == 0.0f)) logits[k] = -1e9f;
            const int64_t choice = draw(logits, K, greedy, &rng);
            if (choice < 0 || !may[choice] || (choice == null && frame[1] == 0.0f) ||
                (choice < H && depth == s->depth)) {
                stuck = 1 + i;
                break;
            }
            out[0] = (float)choice;
            const int is_action = choice >= H && choice < null;
            const int64_t slot = choice == null ? null + h : choice;
            if (s->posterior && is_action && arguments) {
                for (int64_t f = 0; f < W; f++) out[1 + f] = arguments[(b * s->times + time) * W + f];
            } else if (s->argue.layers) {
                const float *argue = 0;
                for (int64_t f = 0; f < s->fields; f++) {
                    const int64_t *field = s->field + 4 * f;
                    if (field[0] != slot) continue;
                    if (!argue) argue = evaluate(&s->argue, h, x, even, odd);
                    const int64_t value = draw(argue + field[1], field[3], greedy, &rng);
                    if (value < 0) stuck = 1 + i;
                    else out[1 + field[2] + value] = 1.0f;
                }
            }
            /* Algorithm 1 */
            if (choice == null) {
                depth--;
                if (depth > 0)
                    for (int64_t f = 0; f < W; f++) frame[3 + W + f - F] = out[1 + f];
                continue;
            }
            frame[1] += 1.0f;
            frame[2] = (float)choice;
            for (int64_t f = 0; f < W; f++) frame[3 + W + f] = is_action ? out[1 + f] : 0.0f; /* u- of an action */
            if (is_action) {
                if (time < s->times - 1) time++;
            } else {
                float *callee = frame + F;
                callee[0] = (float)choice;
                callee[1] = 0.0f;
                callee[2] = (float)null;
                for (int64_t f = 0; f < W; f++) { callee[3 + f] = out[1 + f]; callee[3 + W + f] = 0.0f; }
                depth++;
            }
        }
        steps[b] = stuck ? -stuck : depth > 0 ? horizon + 1 : i;
    }
}

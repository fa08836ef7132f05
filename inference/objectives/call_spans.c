// The span recursion of a call stack: see call_spans.py, which names the quantities; all are logarithms.
//
// One trace of n actions. Unit i is a procedure with a value of its argument; units come callees first, the root last.
//   gamma_i[tau, f, s, r, e]: the probability that a frame (tau, f) at time s takes the actions s .. e-1 and then returns
//   r. The fresh frame's is beta_i[s, r, e]. Where a procedure does not count, tau is 1 in all frames that took a step.
//   kappa_i[tau, k, s, r, e]: the same after the choice of callee k, summed over the times at which it may return.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NEVER (-1e30)

typedef struct {
  int64_t frames, returns, counts, calls, acts, columns;  // frames: those that took a step
  const int64_t *callee, *into;     // [calls]: the unit called, and its first frame here afterwards, from 1
  const int64_t *high, *taus, *row; // [n + 1]: last end of a span from s, counters at s, weights' row of the first
  const int64_t *which;             // [rows]: where the choices of a row are; row s is the fresh frame's
  const double *weight;             // [asked + 1, columns]: act, calls, returns
  double *count;                    // as weight, or NULL: the posterior's expected numbers
} Unit;

typedef struct {
  Unit u;
  int64_t root, n;
  int64_t *at, *fresh, *call;  // [n + 1] offsets into the tables
  double *gamma, *beta, *kappa, *gamma_bar, *beta_bar;
} Table;

static inline double fast_exp(double x) {  // for x <= 0, in a form that compilers vectorise
  x = x < -700.0 ? -700.0 : x;
  const double magic = 6755399441055744.0;
  double shifted = x * 1.4426950408889634 + magic;
  double k = shifted - magic;
  double r = (x - k * 0x1.62e42fefa3800p-1) - k * 0x1.ef35793c76730p-45;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  int64_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (int64_t)((uint64_t)(bits + 1023) << 52);
  double scale;
  memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

static inline double fast_log(double x) {  // for normal x > 0, likewise
  int64_t bits;
  memcpy(&bits, &x, sizeof bits);
  const int64_t power = (bits - 0x3fe6a09e667f3bcd) >> 52;  // x = 2^power m, m in [sqrt(1/2), sqrt(2))
  bits -= (int64_t)((uint64_t)power << 52);
  double m;
  memcpy(&m, &bits, sizeof m);
  const double z = (m - 1.0) / (m + 1.0), q = z * z;
  double p = 1.0 / 21.0;
  p = p * q + 1.0 / 19.0;
  p = p * q + 1.0 / 17.0;
  p = p * q + 1.0 / 15.0;
  p = p * q + 1.0 / 13.0;
  p = p * q + 1.0 / 11.0;
  p = p * q + 1.0 / 9.0;
  p = p * q + 1.0 / 7.0;
  p = p * q + 1.0 / 5.0;
  p = p * q + 1.0 / 3.0;
  return (double)power * 0x1.62e42fefa39efp-1 + 2.0 * (z + z * q * p);
}

static inline double maximum(double a, double b) { return a > b ? a : b; }

// The ends of spans from s: s .. high[s], but for the root, of which only the end n is asked.
static inline int64_t low(const Table *t, int64_t s) { return t->root ? t->n : s; }
static inline int64_t width(const Table *t, int64_t s) { return t->root ? 1 : t->u.high[s] - s + 1; }
static inline int64_t sources(const Table *t, int64_t s) { return t->u.counts ? t->u.taus[s] + 1 : 1; }

// gamma at s of frame f (from 1), return r, counter tau (from 1); the next tau is one width further.
static inline double *gamma_of(const Table *t, double *table, int64_t s, int64_t f, int64_t r, int64_t tau) {
  return table + t->at[s] + (((f - 1) * t->u.returns + r) * t->u.taus[s] + tau - 1) * width(t, s);
}
static inline double *beta_of(const Table *t, double *table, int64_t s, int64_t r) {
  return table + t->fresh[s] + r * width(t, s);
}
static inline double *kappa_of(const Table *t, double *table, int64_t s, int64_t k, int64_t r, int64_t source) {
  return table + t->call[s] + ((k * t->u.returns + r) * sources(t, s) + source) * width(t, s);
}
static inline const double *weights_of(const Unit *u, const double *w, int64_t s, int64_t f, int64_t tau) {
  return w + u->which[f ? u->row[s] + (tau - 1) * u->frames + f - 1 : s] * u->columns;
}

// A unit that calls nothing has one way through a span: it acts until it returns. So it needs beta alone.
static void inside_leaf(Table *t) {
  const Unit *u = &t->u;
  for (int64_t s = 0; s <= t->n; s++) {
    double *beta = beta_of(t, t->beta, s, 0), taken = 0;
    for (int64_t i = 0; i < u->returns * width(t, s); i++) beta[i] = NEVER;
    for (int64_t e = s + 1; e <= u->high[s]; e++) {
      taken += weights_of(u, u->weight, e - 1, e - 1 > s, u->counts ? e - 1 - s : 1)[0];
      const double *stop = weights_of(u, u->weight, e, 1, u->counts ? e - s : 1) + 1;
      if (e < low(t, s)) continue;
      for (int64_t r = 0; r < u->returns; r++)
        beta_of(t, t->beta, s, r)[e - low(t, s)] = maximum(taken + stop[r], NEVER);
    }
  }
}

static void outside_leaf(Table *t) {
  const Unit *u = &t->u;
  for (int64_t s = 0; s <= t->n; s++) {
    double later = 0;
    for (int64_t e = u->high[s]; e > s; e--) {
      double *stop = (double *)weights_of(u, u->count, e, 1, u->counts ? e - s : 1) + 1;
      for (int64_t r = 0; r < u->returns && e >= low(t, s); r++) {
        const double g = beta_of(t, t->beta_bar, s, r)[e - low(t, s)];
        stop[r] += g;
        later += g;
      }
      ((double *)weights_of(u, u->count, e - 1, e - 1 > s, u->counts ? e - 1 - s : 1))[0] += later;
    }
  }
}

// How a span recursion runs over its ends: for every source tau a row of ends, whose lengths differ between s and s'.
typedef struct { int64_t rows, length, stride_to, stride_from, skip; } Block;

static Block block(const Table *t, int64_t s, int64_t then) {
  Block b = {sources(t, s), width(t, then), width(t, s), width(t, then), low(t, then) - low(t, s)};
  if (t->root || b.rows == 1) {  // one contiguous run
    b.length *= b.rows;
    b.rows = 1;
  }
  return b;
}

// Frames f of time s are taken in runs of cells, which lie one after the other in all tables: the ends of one counter, or,
// of the root, which has one end alone, all counters from `tau` on.
static inline int64_t cells(const Table *t, int64_t s, int64_t f) {
  return t->root ? (f ? t->u.taus[s] : 1) : width(t, s);
}
static inline int64_t runs(const Table *t, int64_t s, int64_t f) { return t->root || !f ? 1 : t->u.taus[s]; }
static inline const double *weights_at(const Table *t, const double *w, int64_t s, int64_t f, int64_t tau, int64_t i) {
  return weights_of(&t->u, w, s, f, t->root ? tau + i : tau);
}

// Fill terms [1 + calls, cells] with what each choice of a run and all that follows are worth: to act, and every call.
static void terms_of(const Table *t, int64_t s, int64_t f, int64_t r, int64_t tau, double *terms) {
  const Unit *u = &t->u;
  const int64_t m = cells(t, s, f), source = u->counts ? tau : 0;
  const int64_t first = t->root ? 0 : 1;  // a span that ends where it begins has no action
  for (int64_t i = 0; i < m; i++) terms[i] = NEVER;
  if (u->high[s] > s && u->acts) {
    const double *acted = gamma_of(t, t->gamma, s + 1, 1, r, source + 1);
    for (int64_t i = first; i < m; i++) terms[i] = weights_at(t, u->weight, s, f, tau, i)[0] + acted[i - first];
  }
  for (int64_t k = 0; k < u->calls; k++) {
    const double *kappa = kappa_of(t, t->kappa, s, k, r, source);
    double *term = terms + (1 + k) * m;
    if (t->root)
      for (int64_t i = 0; i < m; i++) term[i] = weights_at(t, u->weight, s, f, tau, i)[1 + k] + kappa[i];
    else {
      const double weight = weights_at(t, u->weight, s, f, tau, 0)[1 + k];
      for (int64_t i = 0; i < m; i++) term[i] = weight + kappa[i];
    }
  }
}

// How many of a run's cells, from the first on, may return at s: none, one, or of the root at the end all.
static inline int64_t returning(const Table *t, int64_t s, int64_t f) {
  return !f ? 0 : !t->root ? 1 : s == t->n ? cells(t, s, f) : 0;
}

// Whether frame f cannot be at s, whatever its counter.
static int cannot_be(const Table *t, int64_t s, int64_t f) {
  for (int64_t tau = f > 0; tau <= (f ? t->u.taus[s] : 0); tau++) {
    const double *weight = weights_of(&t->u, t->u.weight, s, f, tau);
    for (int64_t c = 0; c < t->u.columns; c++)
      if (weight[c] > NEVER) return 0;
  }
  return 1;
}

static void inside_unit(Table *t, Table *all, int viterbi, double *peak, double *terms) {
  const Unit *u = &t->u;
  const int64_t n = t->n, R = u->returns;
  for (int64_t s = n; s >= 0; s--) {
    const int64_t w = width(t, s), from = sources(t, s), size = from * w;
    const int64_t steps = u->high[s] > s;  // whether the next action is within reach
    for (int64_t k = 0; k < u->calls; k++) {
      Table *c = all + u->callee[k];
      for (int64_t r = 0; r < R; r++) {
        double *kappa = kappa_of(t, t->kappa, s, k, r, 0);
        for (int64_t i = 0; i < size; i++) kappa[i] = NEVER;
        if (!steps) continue;
        for (int pass = 0; pass < 2; pass++) {
          if (pass == 1) {
            if (viterbi) break;
            for (int64_t i = 0; i < size; i++) peak[i] = kappa[i], kappa[i] = 0;
          }
          for (int64_t then = s + 1; then <= c->u.high[s]; then++) {
            if (then > u->high[s]) break;
            const Block b = block(t, s, then);
            for (int64_t given = 0; given < c->u.returns; given++) {
              const double called = beta_of(c, c->beta, s, given)[then - low(c, s)];
              if (called <= NEVER) continue;
              const double *gamma = gamma_of(t, t->gamma, then, u->into[k] + given, r, 1);
              for (int64_t j = 0; j < b.rows; j++) {
                double *to = kappa + j * b.stride_to + b.skip, *top = peak + j * b.stride_to + b.skip;
                const double *rest = gamma + j * b.stride_from;
                if (pass == 0)
                  for (int64_t e = 0; e < b.length; e++) to[e] = maximum(to[e], rest[e] + called);
                else
                  for (int64_t e = 0; e < b.length; e++) to[e] += fast_exp(rest[e] + called - top[e]);
              }
            }
          }
        }
        if (!viterbi)
          for (int64_t i = 0; i < size; i++) kappa[i] = kappa[i] > 0 ? peak[i] + fast_log(kappa[i]) : NEVER;
      }
    }
    // Every frame at s: return, act, or call.
    for (int64_t f = 0; f <= u->frames; f++) {
      const int64_t m = cells(t, s, f), over = returning(t, s, f);
      double *top = terms + (1 + u->calls) * m;
      const int64_t number = m ? runs(t, s, f) : 0, never = number && cannot_be(t, s, f);
      for (int64_t run = 0; run < number; run++) {
        const int64_t tau = f ? run + 1 : 0;
        for (int64_t r = 0; r < R; r++) {
          double *to = f ? gamma_of(t, t->gamma, s, f, r, tau) : beta_of(t, t->beta, s, r);
          if (never) {
            for (int64_t i = 0; i < m; i++) to[i] = NEVER;
            continue;
          }
          terms_of(t, s, f, r, tau, terms);
          for (int64_t i = 0; i < m; i++) top[i] = NEVER, to[i] = 0;
          for (int64_t k = 0; k <= u->calls; k++)
            for (int64_t i = 0; i < m; i++) top[i] = maximum(top[i], terms[k * m + i]);
          if (viterbi)
            memcpy(to, top, m * sizeof *to);
          else {
            for (int64_t k = 0; k <= u->calls; k++)
              for (int64_t i = 0; i < m; i++) to[i] += fast_exp(terms[k * m + i] - top[i]);
            for (int64_t i = 0; i < m; i++) to[i] = top[i] <= NEVER ? NEVER : top[i] + fast_log(to[i]);
          }
          for (int64_t i = 0; i < over; i++)
            to[i] = maximum(weights_at(t, u->weight, s, f, tau, i)[1 + u->calls + r], NEVER);
        }
      }
    }
  }
}

static void outside_unit(Table *t, Table *all, double *bar, double *terms) {
  const Unit *u = &t->u;
  const int64_t n = t->n, R = u->returns;
  for (int64_t s = 0; s <= n; s++) {
    const int64_t w = width(t, s), from = sources(t, s), size = u->calls * R * from * w;
    const int64_t steps = u->high[s] > s;
    memset(bar, 0, size * sizeof *bar);
    for (int64_t f = 0; f <= u->frames; f++) {
      const int64_t m = cells(t, s, f), over = returning(t, s, f);
      const int64_t number = m ? runs(t, s, f) : 0;
      if (number && cannot_be(t, s, f)) continue;
      for (int64_t run = 0; run < number; run++) {
        const int64_t tau = f ? run + 1 : 0, source = u->counts ? tau : 0;
        for (int64_t r = 0; r < R; r++) {
          const double *value = f ? gamma_of(t, t->gamma, s, f, r, tau) : beta_of(t, t->beta, s, r);
          const double *given = f ? gamma_of(t, t->gamma_bar, s, f, r, tau) : beta_of(t, t->beta_bar, s, r);
          for (int64_t i = 0; i < over; i++)
            if (value[i] > NEVER) ((double *)weights_at(t, u->count, s, f, tau, i))[1 + u->calls + r] += given[i];
          terms_of(t, s, f, r, tau, terms);
          for (int64_t k = 0; k <= u->calls; k++) {
            double *share = terms + k * m, *onto = NULL;
            for (int64_t i = 0; i < m; i++)
              share[i] = i < over || value[i] <= NEVER ? 0 : given[i] * fast_exp(share[i] - value[i]);
            if (k)
              onto = bar + (((k - 1) * R + r) * from + source) * w;
            else if (steps && u->acts)
              onto = gamma_of(t, t->gamma_bar, s + 1, 1, r, source + 1) - !t->root;
            for (int64_t i = k || t->root ? 0 : 1; onto && i < m; i++) onto[i] += share[i];
            for (int64_t i = 0; i < m; i++) ((double *)weights_at(t, u->count, s, f, tau, i))[k] += share[i];
          }
        }
      }
    }
    if (!steps) continue;
    for (int64_t k = 0; k < u->calls; k++) {
      Table *c = all + u->callee[k];
      for (int64_t r = 0; r < R; r++) {
        const double *kappa = kappa_of(t, t->kappa, s, k, r, 0), *share = bar + (k * R + r) * from * w;
        for (int64_t then = s + 1; then <= c->u.high[s] && then <= u->high[s]; then++) {
          const Block b = block(t, s, then);
          for (int64_t given = 0; given < c->u.returns; given++) {
            const double called = beta_of(c, c->beta, s, given)[then - low(c, s)];
            if (called <= NEVER) continue;
            const double *gamma = gamma_of(t, t->gamma, then, u->into[k] + given, r, 1);
            double *gamma_bar = gamma_of(t, t->gamma_bar, then, u->into[k] + given, r, 1);
            double total = 0;
            for (int64_t j = 0; j < b.rows; j++) {
              const double *sum = kappa + j * b.stride_to + b.skip, *held = share + j * b.stride_to + b.skip;
              const double *rest = gamma + j * b.stride_from;
              double *out = gamma_bar + j * b.stride_from;
              for (int64_t e = 0; e < b.length; e++) {
                const double part = held[e] * fast_exp(rest[e] + called - sum[e]);
                out[e] += part;
                total += part;
              }
            }
            beta_of(c, c->beta_bar, s, given)[then - low(c, s)] += total;
          }
        }
      }
    }
  }
}

static uint64_t mix(uint64_t *state) {  // splitmix64
  uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// The choice among options that are offered one by one: the likeliest, or one drawn (Gumbel's maximum).
typedef struct { double best; int64_t kind, value; uint64_t *random; } Pick;

static void offer(Pick *p, double weight, int64_t kind, int64_t value) {
  if (weight <= NEVER) return;
  if (p->random) weight -= log(-log(((mix(p->random) >> 11) + 0.5) * 0x1p-53));
  if (weight > p->best) p->best = weight, p->kind = kind, p->value = value;
}

// One call trace, top-down through the tables, as triples (kind: 0 act, 1 call, 2 return; unit or value; time).
static int64_t draw(Table *all, int64_t root, int64_t result, int64_t *out, int64_t most, int64_t depth,
                    uint64_t *random) {
  typedef struct { int64_t unit, s, e, r, tau, f, k, given, then; } Frame;
  Frame *stack = malloc((depth + 1) * sizeof *stack);
  if (!stack) return -1;
  int64_t top = 0, written = 0;
  stack[0] = (Frame){root, 0, all[root].n, result, 0, 0, 0, 0, 0};
  while (top >= 0) {
    Frame *now = stack + top;
    Table *t = all + now->unit;
    const Unit *u = &t->u;
    const int64_t s = now->s, e = now->e - low(t, s), source = u->counts ? now->tau : 0;
    if (written == most) {
      written = -1;
      break;
    }
    const double *weight = weights_of(u, u->weight, s, now->f, now->tau);
    Pick pick = {-HUGE_VAL, -1, 0, random};
    if (!u->calls) pick = now->e == s ? (Pick){0, 2, now->r, random} : (Pick){0, 0, 0, random};
    else if (now->f && now->e == s) offer(&pick, weight[1 + u->calls + now->r], 2, now->r);
    if (u->calls && u->high[s] > s && now->e > s) {
      if (u->acts)
        offer(&pick, weight[0] + gamma_of(t, t->gamma, s + 1, 1, now->r, source + 1)[now->e - low(t, s + 1)], 0, 0);
      for (int64_t k = 0; k < u->calls; k++)
        offer(&pick, weight[1 + k] + kappa_of(t, t->kappa, s, k, now->r, source)[e], 1, k);
    }
    int64_t *step = out + 3 * written++;
    step[0] = pick.kind, step[1] = pick.value, step[2] = s;
    if (pick.kind < 0) {
      written = -1;
      break;
    }
    if (pick.kind == 2) {
      if (--top >= 0) {  // the caller goes on where the call was chosen to end
        Frame *back = stack + top;
        back->s = back->then, back->tau = all[back->unit].u.counts ? back->tau + 1 : 1;
        back->f = all[back->unit].u.into[back->k] + back->given;
      }
    } else if (pick.kind == 0) {
      now->s = s + 1, now->tau = u->counts ? now->tau + 1 : 1, now->f = 1;
    } else {
      const int64_t k = pick.value;
      Table *c = all + u->callee[k];
      Pick end = {-HUGE_VAL, 0, 0, random};
      for (int64_t then = s + 1; then <= c->u.high[s] && then <= now->e; then++)
        for (int64_t given = 0; given < c->u.returns; given++)
          offer(&end,
                beta_of(c, c->beta, s, given)[then - low(c, s)] +
                    gamma_of(t, t->gamma, then, u->into[k] + given, now->r, source + 1)[now->e - low(t, then)],
                then, given);
      now->k = k, now->then = end.kind, now->given = end.value;
      step[1] = u->callee[k];
      stack[++top] = (Frame){u->callee[k], s, now->then, now->given, 0, 0, 0, 0, 0};
    }
  }
  free(stack);
  return written;
}

static double *reserve(int64_t size, int *failed) {
  double *table = calloc(size ? size : 1, sizeof *table);
  if (!table) *failed = 1;
  return table;
}

// Fill log_prob [1] and, where units have counts, those; draw `draws` call traces [draws, most, 3] with their lengths.
// Return 0, 1 if memory ran out, or 2 if a trace could not be drawn.
int64_t pyrocontrol_spans(int64_t n, int64_t units, const Unit *given, int64_t depth, int32_t viterbi, double *log_prob,
                          int64_t draws, uint64_t seed, int64_t most, int64_t *out, int64_t *lengths) {
  Table *all = calloc(units, sizeof *all);
  int failed = !all;
  const int outside = !failed && given[0].count != NULL;
  int64_t most_at_once = 0, most_of_run = 0;
  for (int64_t i = 0; i < units && !failed; i++) {
    Table *t = all + i;
    t->u = given[i], t->n = n, t->root = i == units - 1;
    t->at = malloc(3 * (n + 1) * sizeof *t->at);
    if (!t->at) {
      failed = 1;
      break;
    }
    t->fresh = t->at + n + 1, t->call = t->fresh + n + 1;
    int64_t gamma = 0, beta = 0, kappa = 0;
    for (int64_t s = 0; s <= n; s++) {
      const int64_t w = width(t, s) * t->u.returns;
      t->at[s] = gamma, t->fresh[s] = beta, t->call[s] = kappa;
      const int64_t at_once = t->u.calls * sources(t, s) * w;
      if (at_once > most_at_once) most_at_once = at_once;
      const int64_t run = (2 + t->u.calls) * (t->root && t->u.taus[s] > 1 ? t->u.taus[s] : width(t, s));
      if (run > most_of_run) most_of_run = run;
      gamma += t->u.calls ? t->u.frames * t->u.taus[s] * w : 0, beta += w, kappa += at_once;
    }
    t->gamma = reserve(gamma, &failed), t->beta = reserve(beta, &failed), t->kappa = reserve(kappa, &failed);
    if (outside) t->gamma_bar = reserve(gamma, &failed), t->beta_bar = reserve(beta, &failed);
  }
  double *scratch = failed ? NULL : reserve(most_at_once, &failed);
  double *terms = failed ? NULL : reserve(most_of_run, &failed);
  int64_t status = failed;
  if (!failed) {
    for (int64_t i = 0; i < units; i++) {
      if (all[i].u.calls) inside_unit(all + i, all, viterbi, scratch, terms);
      else inside_leaf(all + i);
    }
    Table *root = all + units - 1;
    double top = NEVER, total = 0;
    for (int64_t r = 0; r < root->u.returns; r++) top = maximum(top, *beta_of(root, root->beta, 0, r));
    for (int64_t r = 0; r < root->u.returns; r++) total += fast_exp(*beta_of(root, root->beta, 0, r) - top);
    *log_prob = top <= NEVER ? -HUGE_VAL : viterbi ? top : top + log(total);
    if (outside && top > NEVER) {
      for (int64_t r = 0; r < root->u.returns; r++)
        *beta_of(root, root->beta_bar, 0, r) = fast_exp(*beta_of(root, root->beta, 0, r) - *log_prob);
      for (int64_t i = units - 1; i >= 0; i--) {
        if (all[i].u.calls) outside_unit(all + i, all, scratch, terms);
        else outside_leaf(all + i);
      }
    }
    uint64_t state = seed;
    for (int64_t d = 0; d < draws && top > NEVER; d++) {
      Pick pick = {-HUGE_VAL, 0, 0, viterbi ? NULL : &state};
      for (int64_t r = 0; r < root->u.returns; r++) offer(&pick, *beta_of(root, root->beta, 0, r), 0, r);
      lengths[d] = draw(all, units - 1, pick.value, out + d * most * 3, most, depth, viterbi ? NULL : &state);
      if (lengths[d] < 0) status = 2;
    }
  }
  for (int64_t i = 0; i < units && all; i++) {
    free(all[i].at), free(all[i].gamma), free(all[i].beta), free(all[i].kappa);
    free(all[i].gamma_bar), free(all[i].beta_bar);
  }
  free(all);
  free(scratch);
  free(terms);
  return status;
}

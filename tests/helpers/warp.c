/* Runs the lanes of call_stack_walk.c, whose text takes the place of WALK, one after another between its barriers.
 *
 * A lane goes on until a barrier, then the next one, from the first to the last or (backward) from the last to the
 * first. What a lane reads of another's without a barrier between them is new in one order and old in the other.
 */
#include <stdlib.h>
#include <ucontext.h>

#define LANES 32
#define LANE lane
#define SYNC() yield()
enum { ROOM = 1 << 16 };
static int lane, backward;
static ucontext_t scheduler, lanes[LANES];
static void yield(void) { swapcontext(&lanes[lane], &scheduler); }

WALK

static const Walk *given;
static int64_t row;
static int ended;
static void walked(void) { walk_row(given, row, given->scratch); ended++; }

void pyrocontrol_order(int from_last) { backward = from_last; }

void pyrocontrol_walk(const Walk *w) {
    char *stacks = malloc((size_t)LANES * ROOM);
    given = w;
    for (row = 0; row < w->batch; row++) {
        for (int l = 0; l < LANES; l++) {
            getcontext(&lanes[l]);
            lanes[l].uc_stack.ss_sp = stacks + (size_t)l * ROOM;
            lanes[l].uc_stack.ss_size = ROOM;
            lanes[l].uc_link = &scheduler;
            makecontext(&lanes[l], walked, 0);
        }
        for (ended = 0; ended < LANES;) {
            if (ended) { /* a lane went past a barrier at which others wait */
                w->steps[row] = -1;
                break;
            }
            for (int n = 0; n < LANES; n++) {
                lane = backward ? LANES - 1 - n : n;
                swapcontext(&scheduler, &lanes[lane]);
            }
        }
    }
    free(stacks);
}

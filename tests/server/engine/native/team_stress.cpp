// Neighbours exchange numbers, phase by phase: a thread that is late or early changes the sum.

#include "team.h"

#include <cstdio>
#include <cstdlib>

using namespace foreword;

struct Ring {
  std::vector<long> numbers, next;
};

int main(int, char** arguments) {
  Team team(atoi(arguments[1]));
  const int num_runs = atoi(arguments[2]), num_phases = 20;
  for (int run = 0; run < num_runs; run++) {
    const int n = 1 + run % 67;
    Ring ring{std::vector<long>(n, run), std::vector<long>(n)};
    team.run([&](int) {
      for (int phase = 0; phase < num_phases; phase++) {
        team.share(n, [&](int i) { ring.next[i] = ring.numbers[(i + 1) % n] + 1; });
        team.share(0, [&](int) {});
        team.share(n, [&](int i) { ring.numbers[i] = ring.next[(i + n - 1) % n]; });
      }
    });
    for (long number : ring.numbers)
      if (number != run + num_phases) return printf("run %d: %ld\n", run, number), 1;
  }
}

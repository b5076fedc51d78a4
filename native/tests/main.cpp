// Every kernel and function of every instruction set of this processor, bit for bit.
//   bitbranch_native_tests [--widest NAME]   fails too if the widest set is not this one
#include <cstdio>
#include <cstring>

#include "../instruction_sets.hpp"
#include "testing.hpp"

namespace bitbranch::testing {

namespace {
long comparisons = 0, failures = 0;
}

void expect(bool holds, const std::string& what) {
  ++comparisons;
  if (holds) return;
  if (++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

}  // namespace bitbranch::testing

int main(int argc, char** argv) {
  using namespace bitbranch;
  using namespace bitbranch::testing;
  const auto& sets = instruction_sets();
  if (argc == 3 && std::strcmp(argv[1], "--widest") == 0)
    expect(std::string(argv[2]) == sets[0]->name, std::string("the widest set is ") + sets[0]->name + ", not " + argv[2]);
  test_self_check();
  test_pool();
  for (const InstructionSet* set : sets) {
    const long before = comparisons;
    test_kernels(*set);
    test_functions(*set);
    test_dot(*set);
    std::printf("%-14s %d kernels, %ld comparisons\n", set->name, set->kernel_count, comparisons - before);
  }
  std::printf("%ld of %ld comparisons failed\n", failures, comparisons);
  return failures ? 1 : 0;
}

// Freezing a module, without what dangles afterwards.
// Used by the other parts of the shim only; knows libtorch and not the C interface.
#pragma once
#include <string>
#include <vector>

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/ir/scope.h>

namespace frozen {

using torch::jit::InlinedCallStack;
using torch::jit::InlinedCallStackPtr;
using torch::jit::Module;
using torch::jit::Node;

// All nodes of a block and of the blocks in it. `visit` may replace its node, but must not remove it.
template <typename Visit>
void each_node(torch::jit::Block* block, const Visit& visit) {
  for (auto* node : block->nodes()) {
    for (auto* inner : node->blocks()) each_node(inner, visit);
    visit(node);
  }
}

// The module frozen. The nodes of an inlined graph point to the functions that they come from, and libtorch asks these for
// their names when an operation throws; freezing has dropped the functions by then. So they point to the function that the
// graph belongs to; where in the source they come from, call by call, stays.
inline Module freeze(const Module& module) {
  Module made = torch::jit::freeze(module);
  for (const auto& method : made.get_methods()) {
    auto* function = &method.function();
    each_node(method.graph()->block(), [&](Node* node) {
      if (!node->callstack()) return;
      std::vector<InlinedCallStackPtr> calls;
      for (auto call = node->callstack(); call; call = (*call)->callee()) calls.push_back(*call);
      InlinedCallStackPtr stack;
      for (auto call = calls.rbegin(); call != calls.rend(); ++call) {
        const auto range = (*call)->source_range();
        const auto instance = (*call)->module_instance();
        std::string name = (*call)->function_name();
        stack = stack ? c10::make_intrusive<InlinedCallStack>(stack, function, range, instance, name)
                      : c10::make_intrusive<InlinedCallStack>(function, range, instance, name);
      }
      node->setCallStack(stack);
    });
  }
  return made;
}

}  // namespace frozen

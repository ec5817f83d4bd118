// Linear layers with weights that oneDNN lays out for the processor, once, at the load, and what keeps such weights.
// Used by the other parts of the shim only; knows libtorch and not the C interface.
#pragma once
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/utils.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/types.h>

#include "shim_precision.h"

namespace packed {

using torch::jit::IValue;
using torch::jit::Module;
using torch::jit::Node;

// Weights with fewer elements gain less than the way to oneDNN costs.
constexpr int64_t kElementsMin = 1 << 14;

// The attribute that an operator gets as its weight, and the one with the memory that is behind it: a tensor of oneDNN is
// opaque, and its memory could not leave otherwise.
inline std::string name_of(size_t layer) { return "nereid_packed_" + std::to_string(layer); }
inline std::string memory_name_of(size_t layer) { return name_of(layer) + "_memory"; }

inline c10::OperatorHandle operator_of(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
}

inline IValue call(const c10::OperatorHandle& op, torch::jit::Stack stack) {
  op.callBoxed(&stack);
  return stack.at(0);
}

inline IValue call(const char* name, torch::jit::Stack stack) { return call(operator_of(name), std::move(stack)); }

// A tensor over `memory`, which is laid out like what `like` is over.
inline at::Tensor over(const at::Tensor& memory, const at::Tensor& like) {
  const auto layout = call("mkldnn::_get_mkldnn_serialized_md", {like}).toTensor().contiguous();
  AtenTensorHandle made = nullptr;
  const auto code = aoti_torch_create_tensor_from_blob_v2(
      memory.mutable_data_ptr(), like.dim(), like.sizes().data(), nullptr, 0, static_cast<int32_t>(like.scalar_type()),
      aoti_torch_device_type_cpu(), 0, &made, aoti_torch_layout__mkldnn(),
      static_cast<const uint8_t*>(layout.const_data_ptr()), layout.numel());
  TORCH_CHECK(code == AOTI_TORCH_SUCCESS, "memory cannot be used as the weights of a layer");
  const auto tensor = *torch::aot_inductor::tensor_handle_to_tensor_pointer(made);
  aoti_torch_delete_tensor_object(made);
  return tensor;
}

// The weights that a module has in layouts of oneDNN's, each once.
class Weights {
 public:
  explicit Weights(Module& module) : module_(module) {}

  // Inserts a value: `weight` as `lay_out` gives it. Equal keys mean equal results.
  template <typename LayOut>
  torch::jit::Value* insert(std::vector<int64_t> key, const at::Tensor& weight, const LayOut& lay_out) {
    key.push_back(reinterpret_cast<int64_t>(weight.const_data_ptr()));
    for (const auto sizes : {weight.sizes(), weight.strides()}) key.insert(key.end(), sizes.begin(), sizes.end());
    const auto [at, fresh] = known_.emplace(std::move(key), known_.size());
    if (fresh) {
      const at::Tensor laid_out = lay_out(weight.contiguous());
      auto memory = at::empty({call("mkldnn::_nbytes", {laid_out}).toInt()}, at::kByte);
      const auto* from = reinterpret_cast<const void*>(call("mkldnn::data_ptr", {laid_out}).toInt());
      std::memcpy(memory.mutable_data_ptr(), from, memory.numel());
      const auto type = c10::TensorType::get();
      module_.register_attribute(memory_name_of(at->second), type, memory);
      module_.register_attribute(name_of(at->second), type, over(memory, laid_out));
    }
    auto& graph = *module_.get_method("forward").graph();
    return graph.insertGetAttr(graph.inputs().at(0), name_of(at->second));
  }

 private:
  Module& module_;
  std::map<std::vector<int64_t>, size_t> known_;
};

// The operator that takes the place of a linear layer, and of the activation behind it where that is its only use. The
// activations are those that treat what is not a number as libtorch's own do.
struct Step {
  const char* activation = "none";
  std::string algorithm;
  torch::jit::Value* replaced;
};

inline Step step_of(Node* node) {
  static const auto gelu = c10::Symbol::fromQualString("aten::gelu");
  Step step;
  step.replaced = node->output();
  const auto& uses = node->output()->uses();
  if (uses.size() != 1) return step;
  auto* user = uses[0].user;
  if (user->kind() != gelu || uses[0].offset != 0 || user->owningBlock() != node->owningBlock()) return step;
  const auto algorithm = torch::jit::toIValue(user->input(1));
  if (!algorithm || !algorithm->isString()) return step;
  step.activation = "gelu";
  step.algorithm = algorithm->toStringRef();
  step.replaced = user->output();
  return step;
}

// Replaces the linear layers of a frozen module on the host; those with equal weights share them. Gives their number.
inline size_t pack(Module& module, Weights& weights) {
  static const auto linear = c10::Symbol::fromQualString("mkldnn::_linear_pointwise");
  const char* reorder = "mkldnn::_reorder_linear_weight";
  if (!c10::Dispatcher::singleton().findSchema({reorder, ""})) return 0;
  auto graph = module.get_method("forward").graph();
  size_t count = 0;
  frozen::each_node(graph->block(), [&](Node* node) {
    const auto layer = precision::layer_of(node);
    if (!layer.weight.defined() || !layer.weight.is_cpu() || layer.weight.numel() < kElementsMin) return;
    if (layer.bias.defined() && layer.bias.scalar_type() != at::kFloat) return;
    const auto step = step_of(node);
    const torch::jit::WithInsertPoint here(node);
    auto* weight = weights.insert({}, layer.weight, [&](const at::Tensor& plain) {
      return call(reorder, {plain, IValue()}).toTensor();
    });
    auto* bias = graph->insertConstant(layer.bias.defined() ? IValue(layer.bias) : IValue());
    auto* activation = graph->insertConstant(std::string(step.activation));
    const auto scalar = c10::OptionalType::create(c10::NumberType::get());
    auto* scalars = graph->insertNode(graph->createList(scalar, {}))->output();
    auto* algorithm = graph->insertConstant(step.algorithm);
    auto* made = graph->insertNode(graph->create(linear, {layer.input, weight, bias, activation, scalars, algorithm}));
    made->output()->setType(c10::TensorType::get());
    step.replaced->replaceAllUsesWith(made->output());
    ++count;
  });
  torch::jit::EliminateDeadCode(graph);
  return count;
}

// To be called after the memory of the weights has moved.
inline void moved(Module& module) {
  for (size_t layer = 0; module.hasattr(memory_name_of(layer)); ++layer) {
    const auto memory = module.attr(memory_name_of(layer)).toTensor();
    module.setattr(name_of(layer), over(memory, module.attr(name_of(layer)).toTensor()));
  }
}

}  // namespace packed

// How a module comes to compute in another precision: weights of floating point are converted, linear layers quantised.
// Used by the other parts of the shim only; knows libtorch and not the C interface.
#pragma once
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/cpu/Utils.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/types.h>

#include "shim_frozen.h"

namespace precision {

using torch::jit::IValue;
using torch::jit::Module;
using torch::jit::Node;

inline bool is_float(const at::Tensor& tensor) {
  return tensor.defined() && tensor.has_storage() && !tensor.is_quantized() && at::isFloatingType(tensor.scalar_type());
}

inline bool is_tensor_constant(const Node* node) {
  return node->kind() == c10::prim::Constant && node->hasAttribute(c10::attr::value) &&
         node->kindOf(c10::attr::value) == torch::jit::AttributeKind::t;
}

// Converts tensors; those that share memory share it afterwards, too.
class Converter {
 public:
  explicit Converter(at::ScalarType to) : to_(to) {}

  at::Tensor operator()(const at::Tensor& tensor) {
    const auto& storage = tensor.storage();
    auto& memory = memories_[{storage.unsafeGetStorageImpl(), tensor.scalar_type()}];
    if (!memory.after.defined()) {
      const auto elements = static_cast<int64_t>(storage.nbytes() / tensor.element_size());
      memory.before = at::empty({0}, tensor.options()).set_(storage, 0, {elements}, {1});
      memory.after = memory.before.to(to_);
    }
    return memory.after.as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  }

 private:
  struct Memory {
    at::Tensor before;  // Keeps its address from being used for another.
    at::Tensor after;
  };
  at::ScalarType to_;
  std::map<std::pair<const void*, at::ScalarType>, Memory> memories_;
};

// Libtorch's own `to` would convert integers as well.
inline void convert(Module& module, at::ScalarType to) {
  at::NoGradGuard no_grad;
  Converter converted(to);
  const auto replace = [&](at::Tensor tensor) {
    if (is_float(tensor) && tensor.scalar_type() != to) tensor.set_data(converted(tensor));
  };
  for (const auto& tensor : module.parameters()) replace(tensor);
  for (const auto& tensor : module.buffers()) replace(tensor);
  // A constant with dimensions decides the type of what is computed with it; one without does not.
  for (const auto& part : module.modules()) {
    for (const auto& method : part.get_methods()) {
      frozen::each_node(method.graph()->block(), [&](Node* node) {
        if (!is_tensor_constant(node)) return;
        const auto tensor = node->t(c10::attr::value);
        if (!is_float(tensor) || tensor.dim() == 0 || tensor.scalar_type() == to) return;
        auto constant = converted(tensor);
        node->t_(c10::attr::value, constant);
        node->output()->inferTypeFrom(constant);
      });
    }
  }
}

struct Quantized {
  Module module;
  uint64_t layers;
  uint64_t bytes;
};

// A linear layer with constant weights: `input` times `weight` transposed, plus `bias` where there is one.
struct Layer {
  torch::jit::Value* input = nullptr;
  at::Tensor weight;
  at::Tensor bias;
};

inline at::Tensor constant_tensor(const torch::jit::Value* value) {
  const auto constant = torch::jit::toIValue(value);
  return constant && constant->isTensor() ? constant->toTensor() : at::Tensor();
}

inline bool is_one(const torch::jit::Value* value) {
  const auto constant = torch::jit::toIValue(value);
  return constant && constant->isScalar() && constant->toScalar().equal(1);
}

// The layer that a node is; its weight is undefined if it is none.
inline Layer layer_of(const Node* node) {
  static const auto linear = c10::Symbol::fromQualString("aten::linear");
  Layer layer;
  const torch::jit::Value* bias = nullptr;
  if (node->kind() == linear) {
    layer.input = const_cast<torch::jit::Value*>(node->input(0));
    layer.weight = constant_tensor(node->input(1));
    bias = node->input(2);
  } else if (node->kind() == c10::aten::matmul || node->kind() == c10::aten::mm) {
    layer.input = const_cast<torch::jit::Value*>(node->input(0));
    layer.weight = constant_tensor(node->input(1));
    if (layer.weight.defined() && layer.weight.dim() == 2) layer.weight = layer.weight.t();
  } else if (node->kind() == c10::aten::addmm && is_one(node->input(3)) && is_one(node->input(4))) {
    layer.input = const_cast<torch::jit::Value*>(node->input(1));
    layer.weight = constant_tensor(node->input(2));
    if (layer.weight.defined() && layer.weight.dim() == 2) layer.weight = layer.weight.t();
    bias = node->input(0);
  }
  if (bias != nullptr && !bias->mustBeNone()) {
    layer.bias = constant_tensor(bias);
    if (!layer.bias.defined() || layer.bias.dim() != 1) layer.weight = at::Tensor();
  }
  const auto& weight = layer.weight;
  const bool fits = weight.defined() && weight.dim() == 2 && weight.scalar_type() == at::kFloat && weight.numel() > 0;
  if (!fits || (layer.bias.defined() && layer.bias.numel() != weight.size(0))) layer.weight = at::Tensor();
  return layer;
}

// Tells the weights of layers apart: the same memory may be used as it is, transposed, and in part.
using Weight = std::tuple<const void*, int64_t, int64_t, int64_t, int64_t>;
inline Weight weight_of(const Layer& layer) {
  const auto& weight = layer.weight;
  return {weight.const_data_ptr(), weight.size(0), weight.size(1), weight.stride(0), weight.stride(1)};
}

// The weights of a layer as its operator takes them: each row with a scale of its own, symmetric around zero.
inline IValue packed(const Layer& layer) {
  static const auto prepack = c10::Dispatcher::singleton().findSchemaOrThrow("quantized::linear_prepack", "");
  const auto weight = layer.weight.contiguous();
  const auto scales = (weight.abs().amax(1) / 127).clamp_min(1e-12).to(at::kDouble);
  const auto zeros = at::zeros({weight.size(0)}, at::kLong);
  torch::jit::Stack stack;
  stack.emplace_back(at::quantize_per_channel(weight, scales, zeros, 0, at::kQInt8));
  stack.emplace_back(layer.bias.defined() ? IValue(layer.bias.to(at::kFloat).contiguous()) : IValue());
  prepack.callBoxed(&stack);
  return stack.at(0);
}

// Inputs of the layers get their scales while the model runs, so nothing must be known about them. They use seven bits
// where the processor has no instruction for sums of products of eight, because its sums would overflow.
inline Quantized quantize(const Module& module) {
  static const auto dynamic = c10::Symbol::fromQualString("quantized::linear_dynamic");
  at::NoGradGuard no_grad;
  Quantized made{frozen::freeze(module), 0, 0};
  auto graph = made.module.get_method("forward").graph();
  std::map<std::pair<Weight, const void*>, std::string> names;
  frozen::each_node(graph->block(), [&](Node* node) {
    const auto layer = layer_of(node);
    if (!layer.weight.defined()) return;
    const auto* bias = layer.bias.defined() ? layer.bias.const_data_ptr() : nullptr;
    auto& name = names[{weight_of(layer), bias}];
    if (name.empty()) {
      name = "quantized_" + std::to_string(names.size());
      const auto weights = packed(layer);
      made.module.register_attribute(name, weights.type(), weights);
      made.bytes += layer.weight.numel() + layer.weight.size(0) * (sizeof(float) + 2 * sizeof(int32_t));
    }
    torch::jit::WithInsertPoint here(node);
    auto* weights = graph->insertGetAttr(graph->inputs().at(0), name);
    auto* fewer_bits = graph->insertConstant(!at::cpu::is_avx512_vnni_supported());
    auto* fresh = graph->insertNode(graph->create(dynamic, {layer.input, weights, fewer_bits}));
    fresh->output()->setType(c10::TensorType::get());
    node->output()->replaceAllUsesWith(fresh->output());
    ++made.layers;
  });
  torch::jit::EliminateDeadCode(graph);
  std::set<const void*> seen;
  const auto count = [&](const at::Tensor& tensor) {
    const bool plain = tensor.defined() && tensor.has_storage();
    if (plain && seen.insert(tensor.storage().data()).second) made.bytes += tensor.storage().nbytes();
  };
  frozen::each_node(graph->block(), [&](Node* node) {
    if (is_tensor_constant(node)) count(node->t(c10::attr::value));
  });
  for (const auto& tensor : made.module.parameters()) count(tensor);
  for (const auto& tensor : made.module.buffers()) count(tensor);
  return made;
}

}  // namespace precision

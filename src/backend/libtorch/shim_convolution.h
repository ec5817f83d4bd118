// Convolutions with weights that oneDNN lays out for the processor, once, at the load. Sums and activations that follow
// them are done in the same pass over memory.
// Used by shim.cpp only; knows libtorch and not the C interface.
#pragma once
#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/jit/passes/remove_mutation.h>
#include <torch/library.h>

#include "shim_packed.h"

namespace convolution {

using torch::jit::Graph;
using torch::jit::IValue;
using torch::jit::Module;
using torch::jit::Node;
using torch::jit::Value;

// The sizes of what a convolution gives.
inline std::vector<int64_t> sizes_of(const at::Tensor& input, const at::Tensor& weight,
                                     const std::vector<int64_t>& padding, const std::vector<int64_t>& stride,
                                     const std::vector<int64_t>& dilation) {
  std::vector<int64_t> sizes{input.size(0), weight.size(0)};
  for (size_t at = 0; at < 2; ++at) {
    const auto there = input.size(2 + at) + 2 * padding[at];
    const auto needed = dilation[at] * (weight.size(2 + at) - 1) + 1;
    TORCH_CHECK(there >= needed, "a convolution needs at least ", needed, " of a dimension, got ", there);
    sizes.push_back((there - needed) / stride[at] + 1);
  }
  return sizes;
}

// The sum of a convolution and of `other`, where there is one, and then the activation. Outputs have their channels
// innermost. oneDNN is asked only for what it can do: it wants a batch, and adds nothing of another size or type. As in
// libtorch's own optimisation, relu and hardtanh in the same pass give their lower limit for what is not a number.
//
// `other` takes the sum where nobody else can see it: where this holds the last reference to it and to its memory.
inline at::Tensor run(const at::Tensor& input, at::Tensor other, const IValue& weight, const IValue& bias,
                      const IValue& padding, const IValue& stride, const IValue& dilation, const IValue& groups,
                      const IValue& activation, const IValue& scalars) {
  const auto& weights = weight.toTensor();
  const bool batched = input.dim() == 4;
  TORCH_CHECK(batched || input.dim() == 3, "expected 3 or 4 dimensions of a convolution's input, got ", input.dim());
  TORCH_CHECK(input.scalar_type() == at::kFloat && input.is_cpu(),
              "expected a convolution's input of type Float on the CPU, got ", input.scalar_type(), " on ",
              input.device());
  const auto x = batched ? input : input.unsqueeze(0);
  const auto channels = weights.size(1) * groups.toInt();
  TORCH_CHECK(x.size(1) == channels, "expected ", channels, " channels of a convolution's input, got ", x.sizes());
  // oneDNN takes an input without pixels for one that needs no work, and leaves the output as it is.
  TORCH_CHECK(x.size(0) == 0 || x.numel() > 0, "expected pixels in a convolution's input, got ", x.sizes());
  const auto sizes = sizes_of(x, weights, padding.toIntVector(), stride.toIntVector(), dilation.toIntVector());
  // With one channel or one pixel, strides do not say which dimension is the innermost.
  const bool clear = sizes[1] > 1 && sizes[2] * sizes[3] > 1;
  const bool same = other.defined() && other.sizes() == sizes && other.scalar_type() == x.scalar_type();
  const bool adds = same && clear && batched && other.layout() == at::kStrided;
  const bool none = activation.toStringRef() == "none";
  at::Tensor made;
  if (x.size(0) == 0) {
    made = at::empty(sizes, x.options());
  } else if (adds) {
    const IValue after = none ? IValue() : activation;
    const bool ours = other.use_count() == 1 && other.storage().use_count() == 1 && groups.toInt() == 1 &&
                      other.is_contiguous(at::MemoryFormat::ChannelsLast);
    static const auto in_place = packed::operator_of("mkldnn::_convolution_pointwise_", "binary");
    static const auto fresh = packed::operator_of("mkldnn::_convolution_pointwise", "binary");
    const auto [first, second] = ours ? std::pair(std::move(other), x) : std::pair(x, std::move(other));
    return packed::call(ours ? in_place : fresh, {first, second, weight, bias, padding, stride, dilation, groups, "add",
                                                  1.0, after, scalars, IValue()}).toTensor();
  } else {
    // What is added comes before the activation.
    const IValue at_once = other.defined() ? IValue("none") : activation;
    static const auto alone = packed::operator_of("mkldnn::_convolution_pointwise");
    const auto done = packed::call(alone, {x, weight, bias, padding, stride, dilation, groups, at_once, scalars, IValue()});
    made = done.toTensor();
  }
  if (!batched) made = made.squeeze(0);
  if (!other.defined()) return made;
  made = at::add(made, other);
  return none ? made : at::relu(made);
}

inline void operate(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  const auto given = stack->end() - 10;
  auto other = given[1].isNone() ? at::Tensor() : std::move(given[1]).toTensor();
  auto made = run(given[0].toTensor(), std::move(other), given[2], given[3], given[4], given[5], given[6], given[7],
                  given[8], given[9]);
  torch::jit::drop(*stack, 10);
  stack->emplace_back(std::move(made));
}

TORCH_LIBRARY(nereid, library) {
  library.def(
      "convolution(Tensor input, Tensor? other, Tensor weight, Tensor? bias, int[] padding, int[] stride, "
      "int[] dilation, int groups, str activation, Scalar?[] scalars) -> Tensor");
  library.impl("convolution", torch::dispatch(c10::DispatchKey::CompositeImplicitAutograd,
                                              torch::CppFunction::makeFromBoxedFunction<&operate>()));
}

inline c10::Symbol own() { return c10::Symbol::fromQualString("nereid::convolution"); }

// A convolution in two dimensions of which all but the input is constant.
struct Layer {
  Value* input;
  at::Tensor weight;
  at::Tensor bias;
  std::vector<int64_t> padding, stride, dilation;
  int64_t groups;
};

inline std::optional<std::vector<int64_t>> pair_of(const Value* value) {
  const auto constant = torch::jit::toIValue(value);
  if (!constant || !constant->isIntList() || constant->toIntList().size() != 2) return std::nullopt;
  return constant->toIntVector();
}

// The padding of both ends, in numbers where it is a word.
inline std::optional<std::vector<int64_t>> padding_of(const Value* value, const at::Tensor& weight,
                                                      const std::vector<int64_t>& stride,
                                                      const std::vector<int64_t>& dilation) {
  const auto constant = torch::jit::toIValue(value);
  if (!constant || !constant->isString()) return pair_of(value);
  std::vector<int64_t> made{0, 0};
  if (constant->toStringRef() == "valid") return made;
  for (size_t at = 0; at < 2; ++at) {
    const auto both = dilation[at] * (weight.size(2 + at) - 1);
    if (constant->toStringRef() != "same" || stride[at] != 1 || both % 2 != 0) return std::nullopt;
    made[at] = both / 2;
  }
  return made;
}

inline std::optional<Layer> layer_of(Node* node) {
  const bool general = node->kind() == c10::aten::_convolution;
  if (!general && node->kind() != c10::aten::conv2d) return std::nullopt;
  const auto usable = [](const at::Tensor& tensor, int64_t dims) {
    return tensor.defined() && tensor.is_cpu() && tensor.scalar_type() == at::kFloat && tensor.dim() == dims;
  };
  Layer layer{node->input(0), precision::constant_tensor(node->input(1)), {}, {}, {}, {}, 0};
  if (!usable(layer.weight, 4) || layer.weight.numel() == 0) return std::nullopt;
  if (!node->input(2)->mustBeNone()) {
    layer.bias = precision::constant_tensor(node->input(2));
    if (!usable(layer.bias, 1) || layer.bias.numel() != layer.weight.size(0)) return std::nullopt;
  }
  const auto stride = pair_of(node->input(3)), dilation = pair_of(node->input(5));
  const auto groups = torch::jit::toIValue(node->input(general ? 8 : 6));
  const auto transposed = general ? torch::jit::toIValue(node->input(6)) : std::optional<IValue>(false);
  if (!stride || !dilation || !groups || !transposed || transposed->toBool()) return std::nullopt;
  const auto padding = padding_of(node->input(4), layer.weight, *stride, *dilation);
  if (!padding) return std::nullopt;
  layer.stride = *stride, layer.padding = *padding, layer.dilation = *dilation, layer.groups = groups->toInt();
  const auto at_least = [](const auto& pair, int64_t least) { return std::min(pair[0], pair[1]) >= least; };
  const bool whole = layer.groups > 0 && layer.weight.size(0) % layer.groups == 0;
  const bool fits = at_least(layer.stride, 1) && at_least(layer.dilation, 1) && at_least(layer.padding, 0);
  return whole && fits ? std::optional(layer) : std::nullopt;
}

// What a convolution takes over from the nodes behind it, where nobody else uses what it gives to them.
struct Step {
  Value* other = nullptr;
  std::string activation = "none";
  std::vector<at::Scalar> scalars;
  Node* last;
};

inline Node* only_user(const Node* node) {
  const auto& uses = node->output()->uses();
  const bool one = uses.size() == 1 && uses[0].user->owningBlock() == node->owningBlock();
  return one && uses[0].user->outputs().size() == 1 ? uses[0].user : nullptr;
}

inline Step step_of(Node* node) {
  static const std::unordered_map<std::string, std::string> activations{
      {"aten::relu", "relu"},           {"aten::silu", "swish"},         {"aten::sigmoid", "sigmoid"},
      {"aten::hardswish", "hardswish"}, {"aten::hardtanh", "hardtanh"}, {"aten::leaky_relu", "leaky_relu"}};
  Step step;
  step.last = node;
  auto* user = only_user(node);
  const bool adds = user != nullptr && user->kind() == c10::aten::add && user->inputs().size() == 3;
  if (adds && precision::is_one(user->input(2))) {
    auto* other = user->input(user->input(0) == node->output() ? 1 : 0);
    if (other->type()->isSubtypeOf(*c10::TensorType::get())) {
      step.other = other;
      step.last = user;
      user = only_user(user);
    }
  }
  const auto found = user == nullptr ? activations.end() : activations.find(user->kind().toQualString());
  if (found == activations.end() || (step.other != nullptr && found->second != "relu")) return step;
  for (size_t at = 1; at < user->inputs().size(); ++at) {
    const auto constant = torch::jit::toIValue(user->input(at));
    if (!constant || !constant->isScalar()) return step;
    step.scalars.push_back(constant->toScalar());
  }
  step.activation = found->second;
  step.last = user;
  return step;
}

// Whether an operator writes to what it gets.
inline bool writes_to(const c10::Argument& argument) {
  const auto* alias = argument.alias_info();
  if (alias == nullptr) return false;
  const auto& inner = alias->containedTypes();
  return alias->isWrite() || std::any_of(inner.begin(), inner.end(), [](const auto& each) { return each.isWrite(); });
}

// Whether something may write to a tensor, or computes in types of its own choice. What runs other graphs may do
// anything.
inline bool is_particular(Graph& graph) {
  bool found = false;
  frozen::each_node(graph.block(), [&](Node* node) {
    const auto kind = node->kind();
    found |= kind == c10::prim::CallMethod || kind == c10::prim::CallFunction || kind == c10::prim::fork ||
             kind == c10::prim::awaitable || kind == c10::prim::PythonOp || kind == c10::prim::Enter;
    const auto* schema = node->maybeSchema();
    // Lists may grow.
    if (schema == nullptr || kind == c10::aten::append) return;
    const auto& arguments = schema->arguments();
    found |= std::any_of(arguments.begin(), arguments.end(), writes_to);
  });
  return found;
}

// Whether a node gives the same numbers for tensors however they are laid out, and does not tell how.
inline bool is_indifferent(const Node* node) {
  static const std::unordered_set<std::string> known{
      "aten::relu",      "aten::relu6",      "aten::silu",       "aten::sigmoid",    "aten::tanh",
      "aten::gelu",      "aten::elu",        "aten::hardswish",  "aten::hardtanh",   "aten::hardsigmoid",
      "aten::clamp",     "aten::leaky_relu", "aten::add",        "aten::sub",        "aten::mul",
      "aten::div",       "aten::dropout",    "aten::cat",        "aten::batch_norm", "aten::max_pool2d",
      "aten::mean",      "aten::avg_pool2d", "aten::size",       "aten::dim",        "aten::adaptive_avg_pool2d",
      "aten::flatten",   "aten::upsample_nearest2d",             "aten::upsample_bilinear2d"};
  const auto kind = node->kind();
  if (kind != c10::prim::ListConstruct) return kind == own() || known.count(kind.toQualString()) != 0;
  const auto& uses = node->output()->uses();
  return std::all_of(uses.begin(), uses.end(), [](const auto& use) { return use.user->kind() == c10::aten::cat; });
}

// Gives what the convolutions made, and what follows from it, the usual layout wherever somebody may look at it.
inline void settle(Graph& graph) {
  std::vector<Value*> loose;
  std::unordered_set<const Value*> known;
  const auto is_known = [&](const Value* value) { return known.count(value) != 0; };
  frozen::each_node(graph.block(), [&](Node* node) {
    const auto inputs = node->inputs();
    const bool derived = is_indifferent(node) && std::any_of(inputs.begin(), inputs.end(), is_known);
    if (node->kind() != own() && !derived) return;
    known.insert(node->output());
    if (node->output()->type()->isSubtypeOf(*c10::TensorType::get())) loose.push_back(node->output());
  });
  for (auto* value : loose) {
    auto uses = value->uses();
    const auto end = std::remove_if(uses.begin(), uses.end(), [](const auto& use) { return is_indifferent(use.user); });
    if (end == uses.begin()) continue;
    const torch::jit::WithInsertPoint here(value->node()->next());
    auto* settled = graph.insert(c10::aten::contiguous, {value});
    std::for_each(uses.begin(), end, [&](const auto& use) { use.user->replaceInput(use.offset, settled); });
  }
}

// Replaces the convolutions of a frozen module on the host; those with equal weights share them. Gives their number.
inline size_t pack(Module& module, packed::Weights& weights) {
  const char* reorder = "mkldnn::_reorder_convolution_weight";
  if (!c10::Dispatcher::singleton().findSchema({reorder, ""})) return 0;
  auto graph = module.get_method("forward").graph();
  std::vector<Node*> nodes;
  frozen::each_node(graph->block(), [&](Node* node) {
    if (layer_of(node)) nodes.push_back(node);
  });
  if (nodes.empty()) return 0;
  torch::jit::RemoveTensorMutation(graph);
  if (is_particular(*graph)) return 0;
  for (auto* node : nodes) {
    const auto layer = *layer_of(node);
    const auto step = step_of(node);
    const torch::jit::WithInsertPoint here(step.last);
    std::vector<int64_t> key{layer.groups};
    const auto& [padding, stride, dilation] = std::tie(layer.padding, layer.stride, layer.dilation);
    for (const auto* pair : {&padding, &stride, &dilation}) key.insert(key.end(), pair->begin(), pair->end());
    auto* weight = weights.insert(std::move(key), layer.weight, [&](const at::Tensor& plain) {
      return packed::call(reorder, {plain, padding, stride, dilation, layer.groups, IValue()}).toTensor();
    });
    auto* none = graph->insertConstant(IValue());
    std::vector<Value*> scalars;
    for (const auto& scalar : step.scalars) scalars.push_back(graph->insertConstant(scalar));
    const auto number = c10::OptionalType::create(c10::NumberType::get());
    auto* made = graph->create(own(), {layer.input, step.other == nullptr ? none : step.other, weight,
                                       layer.bias.defined() ? graph->insertConstant(layer.bias) : none,
                                       graph->insertConstant(padding), graph->insertConstant(stride),
                                       graph->insertConstant(dilation), graph->insertConstant(layer.groups),
                                       graph->insertConstant(step.activation),
                                       graph->insertNode(graph->createList(number, scalars))->output()});
    made->copyMetadata(node);
    made->output()->setType(c10::TensorType::get());
    graph->insertNode(made);
    step.last->output()->replaceAllUsesWith(made->output());
  }
  torch::jit::EliminateDeadCode(graph);
  settle(*graph);
  return nodes.size();
}

}  // namespace convolution

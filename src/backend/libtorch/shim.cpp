// The C++ side of shim.h: each function is one libtorch call, with every exception caught.
#include "shim.h"
#include "shim_base.h"
#include "shim_convolution.h"
#include "shim_frozen.h"
#include "shim_packed.h"
#include "shim_precision.h"
#include "shim_storages.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/DeviceAccelerator.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/runtime/jit_exception.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/cuda.h>
#include <torch/types.h>

using torch::jit::IValue;
using torch::jit::Module;

struct nt_module {
  Module module;
};
struct nt_value {
  IValue value;
};
struct nt_stream {
  std::optional<c10::Stream> stream;  // Empty on the host.
  std::optional<c10::Event> mark;
};
struct nt_storages {
  storages::Storages storages;
};

namespace {

std::string string_of(nt_text text) { return std::string(text.data, text.len); }
nt_text text_of(const std::string& text) { return {text.data(), text.size()}; }

at::Device device_of(int32_t device) {
  return device < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device));
}
int32_t device_code(const at::Device& device) { return device.is_cuda() ? device.index() : -1; }
at::TensorOptions options_of(int32_t dtype) { return at::TensorOptions().dtype(static_cast<at::ScalarType>(dtype)); }

// --- memory -----------------------------------------------------------------------------------------------------------

// The most that tensors on the host may take: nine tenths of the memory that this machine, or this container, has.
uint64_t memory_limit() {
  uint64_t bytes = static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  uint64_t allowed = 0;
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> allowed && allowed > 0) bytes = std::min(bytes, allowed);
  return bytes / 10 * 9;
}

// Libtorch's usual allocator, but for single allocations that the machine cannot hold. The system grants address space
// without looking at how much memory there is, so an absurd size would only fail when it is written to, with the whole
// process. What is granted is the usual allocator's own: operators free scratch memory by its bare pointer, so nothing
// may be wrapped around it.
class BoundedAllocator final : public c10::Allocator {
 public:
  explicit BoundedAllocator(c10::Allocator* inner) : inner_(inner), limit_(memory_limit()) {}

  c10::DataPtr allocate(size_t bytes) override {
    TORCH_CHECK(bytes <= limit_, "not enough memory: you tried to allocate ", bytes, " bytes of at most ", limit_);
    return inner_->allocate(bytes);
  }

  c10::DeleterFnPtr raw_deleter() const override { return inner_->raw_deleter(); }

  void copy_data(void* target, const void* source, std::size_t bytes) const override {
    inner_->copy_data(target, source, bytes);
  }

 private:
  c10::Allocator* inner_;
  uint64_t limit_;
};

// --- process and thread ---------------------------------------------------------------------------------------------

char* configure() {
  return guarded([] {
    // The profiling executor measures the first two runs of each shape, which makes both slow and, on a CPU, gains
    // nothing afterwards.
    torch::jit::getProfilingMode() = false;
    c10::SetCPUAllocator(new BoundedAllocator(c10::GetCPUAllocator()), /*priority=*/100);  // For the process's life.
  });
}

char* thread_begin(int32_t device, int32_t threads) {
  return guarded([&] {
    // A thread takes over the count that any thread set last when it first asks; asking before setting settles that.
    at::get_num_threads();
    at::set_num_threads(threads);
    if (device >= 0) {
      c10::impl::VirtualGuardImpl guard(at::kCUDA);
      guard.setDevice(device_of(device));
      at::accelerator::setCurrentStream(guard.getStreamFromGlobalPool(device_of(device), false));
    }
  });
}

char* stream_of_thread(int32_t device, nt_stream** out) {
  return guarded([&] {
    auto made = std::make_unique<nt_stream>();
    if (device >= 0) {
      made->stream = c10::impl::VirtualGuardImpl(at::kCUDA).getStream(device_of(device));
      made->mark.emplace(at::kCUDA);
    }
    *out = made.release();
  });
}

char* stream_mark(nt_stream* self) {
  return guarded([&] {
    if (self->stream) self->mark->record(*self->stream);
  });
}

char* stream_passed(const nt_stream* self, int32_t* passed) {
  return guarded([&] { *passed = !self->stream || self->mark->query(); });
}

char* stream_wait(const nt_stream* self, int32_t to_mark) {
  return guarded([&] {
    if (!self->stream) return;
    if (to_mark != 0) {
      self->mark->synchronize();
    } else {
      self->stream->synchronize();
    }
  });
}

void stream_free(nt_stream* self) { delete self; }

char* cuda_count(int64_t* count) {
  return guarded([&] { *count = torch::cuda::is_available() ? static_cast<int64_t>(torch::cuda::device_count()) : 0; });
}

char* cuda_memory(int32_t device, uint64_t* free, uint64_t* total) {
  return guarded([&] {
    auto [unused, all] = at::accelerator::getMemoryInfo(static_cast<c10::DeviceIndex>(device));
    *free = unused;
    *total = all;
  });
}

char* cuda_allocated(int32_t device, uint64_t* used, uint64_t* kept) {
  return guarded([&] {
    const auto stats = at::accelerator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
    constexpr auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *used = static_cast<uint64_t>(stats.allocated_bytes[all].current);
    *kept = static_cast<uint64_t>(stats.reserved_bytes[all].current);
  });
}

char* cuda_empty_cache() {
  return guarded([] { at::accelerator::emptyCache(); });
}

// --- tensors --------------------------------------------------------------------------------------------------------

char* tensor_over(int32_t dtype, const int64_t* dims, size_t ndim, const void* data, void* context,
                  void (*release)(void*), nt_tensor** out) {
  // The maker owns `context` from the start, so that it is released on every path.
  return guarded([&] {
    auto made = at::for_blob(const_cast<void*>(data), at::IntArrayRef(dims, ndim))
                    .context(context, release)
                    .options(options_of(dtype))
                    .make_tensor();
    *out = new nt_tensor{std::move(made)};
  });
}

char* tensor_empty(int32_t dtype, const int64_t* dims, size_t ndim, int32_t pinned, nt_tensor** out, void** data) {
  return guarded([&] {
    auto made = at::empty(at::IntArrayRef(dims, ndim), options_of(dtype).pinned_memory(pinned != 0));
    *data = made.mutable_data_ptr();
    *out = new nt_tensor{std::move(made)};
  });
}

char* tensor_reuse(const nt_tensor* buffer, int32_t dtype, const int64_t* dims, size_t ndim, nt_tensor** out,
                   void** data) {
  return guarded([&] {
    *out = nullptr;
    const auto& storage = buffer->tensor.storage();
    const at::IntArrayRef shape(dims, ndim);
    const auto type = c10::scalarTypeToTypeMeta(static_cast<at::ScalarType>(dtype));
    const size_t bytes = at::detail::computeStorageNbytesContiguous(shape, type.itemsize());
    if (storage.use_count() != 1 || storage.nbytes() < bytes) return;
    // Whoever let go of the memory, on whichever thread, had read it before.
    std::atomic_thread_fence(std::memory_order_acquire);
    auto made = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage),
                                                         c10::DispatchKeySet(c10::DispatchKey::CPU), type);
    made.unsafeGetTensorImpl()->set_sizes_contiguous(shape);
    *data = made.mutable_data_ptr();
    *out = new nt_tensor{std::move(made)};
  });
}

char* tensor_to(const nt_tensor* self, int32_t device, nt_tensor** out) {
  return guarded([&] { *out = new nt_tensor{self->tensor.to(device_of(device), /*non_blocking=*/true)}; });
}

// A tensor's elements without gaps, in their usual order and as they are read.
at::Tensor dense(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.layout() == at::kStrided, "a ", tensor.layout(), " tensor cannot be sent, only a dense one");
  TORCH_CHECK(!tensor.is_quantized(), "a quantized tensor cannot be sent");
  return tensor.resolve_conj().resolve_neg().contiguous();
}

// Waits for what this thread has started on the device. Who gets the tensors has a stream of his own.
void finish(const at::Device& device) {
  if (device.is_cuda()) at::accelerator::getCurrentStream(device.index()).synchronize();
}

char* tensor_host(const nt_tensor* self, int32_t copy, int32_t later, nt_tensor** out) {
  return guarded([&] {
    c10::InferenceMode guard;
    if (later != 0 && self->tensor.is_cuda()) {
      const auto there = dense(self->tensor);
      auto pinned = at::empty(there.sizes(), there.options().device(at::kCPU).pinned_memory(true));
      // The allocators take neither memory back before the copy has ended.
      pinned.copy_(there, /*non_blocking=*/true);
      *out = new nt_tensor{std::move(pinned)};
      return;
    }
    auto host = dense(self->tensor.to(at::kCPU));
    const bool shared = host.has_storage() && host.storage().is_alias_of(self->tensor.storage());
    *out = new nt_tensor{copy != 0 && shared ? host.clone() : host};
  });
}

char* tensor_keep(const nt_tensor* self, int32_t copy, int32_t own, nt_tensor** out) {
  return guarded([&] {
    at::NoGradGuard guard;
    auto kept = dense(self->tensor);
    const auto& storage = kept.storage();
    // Memory of a caller's has no allocator; a part of a larger tensor would keep all of it.
    const bool alone = storage.allocator() != nullptr && storage.nbytes() == kept.nbytes();
    const bool same = kept.is_alias_of(self->tensor);
    if ((own != 0 && !alone) || (copy != 0 && same)) kept = kept.clone();
    *out = new nt_tensor{std::move(kept)};
  });
}

// Dense host tensors, one after the other, as a new one. The operators take many times as long for small ones.
at::Tensor host_join(const nt_tensor* const* parts, size_t count, at::IntArrayRef dims) {
  auto joined = at::empty(dims, parts[0]->tensor.options());
  auto* target = static_cast<char*>(joined.mutable_data_ptr());
  size_t left = joined.nbytes();
  for (size_t i = 0; i < count; ++i) {
    const auto& part = parts[i]->tensor;
    TORCH_CHECK(part.nbytes() <= left, "inputs of one batch have more elements than its shape");
    if (part.nbytes() > 0) std::memcpy(target, part.const_data_ptr(), part.nbytes());
    target += part.nbytes();
    left -= part.nbytes();
  }
  TORCH_CHECK(left == 0, "inputs of one batch have fewer elements than its shape");
  return joined;
}

char* tensor_parts(const nt_tensor* self, const int64_t* ranges, size_t count, int32_t own, nt_tensor** out) {
  return guarded([&] {
    at::NoGradGuard guard;
    const auto& tensor = self->tensor;
    const auto flat = tensor.view(-1);
    const size_t size = tensor.element_size();
    std::vector<std::unique_ptr<nt_tensor>> parts(count);
    for (size_t i = 0; i < count; ++i) {
      const int64_t first = ranges[2 * i], elements = ranges[2 * i + 1];
      TORCH_CHECK(first >= 0 && elements >= 0 && elements <= tensor.numel() - first, "a part is not of its tensor");
      at::Tensor part;
      if (own == 0) {
        part = flat.narrow(0, first, elements);
      } else if (tensor.is_cpu()) {
        part = at::empty({elements}, tensor.options());
        const auto* from = static_cast<const char*>(tensor.const_data_ptr()) + first * size;
        if (elements > 0) std::memcpy(part.mutable_data_ptr(), from, part.nbytes());
      } else {
        part = flat.narrow(0, first, elements).clone();
      }
      parts[i].reset(new nt_tensor{std::move(part)});
    }
    if (own != 0) finish(flat.device());
    for (size_t i = 0; i < count; ++i) out[i] = parts[i].release();
  });
}

char* tensor_join(const nt_tensor* const* parts, size_t count, int32_t device, int32_t copy, const int64_t* dims,
                  size_t ndim, nt_tensor** out) {
  return guarded([&] {
    at::NoGradGuard guard;
    const auto to = device_of(device);
    const auto& first = parts[0]->tensor;
    const at::IntArrayRef shape(dims, ndim);
    bool on_host = to.is_cpu();
    for (size_t i = 0; i < count; ++i) {
      const auto& part = parts[i]->tensor;
      TORCH_CHECK(part.scalar_type() == first.scalar_type(), "inputs of one batch differ in type");
      on_host = on_host && part.is_cpu();
    }
    if (count == 1 && copy == 0 && first.device() == to) {
      *out = new nt_tensor{first.sizes() == shape ? first : first.view(shape)};
      return;
    }
    if (on_host) {
      *out = new nt_tensor{host_join(parts, count, shape)};
      return;
    }
    std::vector<at::Tensor> flat;
    flat.reserve(count);
    // On the way to the host nobody would wait.
    for (size_t i = 0; i < count; ++i) flat.push_back(parts[i]->tensor.view(-1).to(to, /*non_blocking=*/to.is_cuda()));
    auto joined = flat.size() == 1 ? flat[0] : at::cat(flat);
    if (copy != 0 && joined.is_alias_of(first)) joined = joined.clone();
    *out = new nt_tensor{joined.view(shape)};
  });
}

char* tensor_cast(const nt_tensor* self, int32_t dtype, nt_tensor** out) {
  return guarded([&] {
    c10::InferenceMode guard;
    *out = new nt_tensor{self->tensor.to(static_cast<at::ScalarType>(dtype))};
  });
}

char* tensor_view(const nt_tensor* self, nt_view* out) {
  return guarded([&] {
    const auto& tensor = self->tensor;
    auto dims = tensor.sizes();
    *out = {static_cast<int32_t>(tensor.scalar_type()), device_code(tensor.device()), tensor.dim(), dims.data(),
            tensor.const_data_ptr(),                    tensor.nbytes()};
  });
}

void tensor_free(nt_tensor* self) { delete self; }

// --- modules --------------------------------------------------------------------------------------------------------

char* module_new(nt_text name, nt_module** out) {
  return guarded([&] {
    Module module(string_of(name));
    // As every module has that Python saves.
    module.register_attribute("training", c10::BoolType::get(), true);
    *out = new nt_module{std::move(module)};
  });
}

char* module_register(nt_module* self, nt_text name, const nt_tensor* tensor, int32_t buffer) {
  return guarded([&] {
    if (buffer != 2) return self->module.register_parameter(string_of(name), tensor->tensor, buffer != 0);
    self->module.register_attribute(string_of(name), c10::ListType::ofTensors(), c10::List<at::Tensor>({tensor->tensor}));
  });
}

char* module_define(nt_module* self, nt_text source) {
  return guarded([&] { self->module.define(string_of(source)); });
}

char* module_save(const nt_module* self, nt_text path) {
  return guarded([&] { self->module.save(string_of(path)); });
}

char* module_load(nt_text path, int32_t device, nt_module** out) {
  return guarded([&] {
    auto module = torch::jit::load(string_of(path), device_of(device), /*load_debug_files=*/false);
    if (module.hasattr("training")) module.eval();
    *out = new nt_module{std::move(module)};
  });
}

char* module_copy(const nt_module* self, nt_module** out) {
  return guarded([&] {
    auto copy = self->module.deepcopy();
    packed::moved(copy);
    *out = new nt_module{std::move(copy)};
  });
}

char* module_freeze(const nt_module* self, nt_module** out) {
  return guarded([&] {
    c10::InferenceMode guard(false);
    *out = new nt_module{frozen::freeze(self->module)};
  });
}

char* module_optimize(const nt_module* self, nt_module** out, uint64_t* layers) {
  return guarded([&] {
    const c10::InferenceMode ordinary(false);
    const at::NoGradGuard no_grad;
    Module frozen = frozen::freeze(self->module);
    packed::Weights weights(frozen);
    *layers = packed::pack(frozen, weights);
    *layers += convolution::pack(frozen, weights);
    *out = new nt_module{torch::jit::optimize_for_inference(frozen)};
  });
}

char* module_convert(nt_module* self, int32_t dtype) {
  return guarded([&] { precision::convert(self->module, static_cast<at::ScalarType>(dtype)); });
}

char* module_quantize(const nt_module* self, nt_module** out, uint64_t* layers, uint64_t* bytes) {
  return guarded([&] {
    auto made = precision::quantize(self->module);
    *layers = made.layers;
    *bytes = made.bytes;
    *out = new nt_module{std::move(made.module)};
  });
}

char* module_schema(const nt_module* self, void* context, void (*each)(void*, const nt_argument*)) {
  return guarded([&] {
    const auto method = self->module.get_method("forward");
    const auto& schema = method.function().getSchema();
    const auto send = [&](const std::string& name, const c10::Type& type, const std::string* fallback, int returned) {
      const std::string written = type.annotation_str();
      const nt_argument argument{text_of(name), text_of(written), fallback ? text_of(*fallback) : nt_text{nullptr, 0},
                                 returned};
      each(context, &argument);
    };
    for (size_t i = 1; i < schema.arguments().size(); ++i) {  // The first is the module itself.
      const auto& argument = schema.arguments()[i];
      std::string fallback;
      if (argument.default_value()) {
        std::ostringstream text;
        text << *argument.default_value();
        fallback = text.str();
      }
      send(argument.name(), *argument.type(), argument.default_value() ? &fallback : nullptr, 0);
    }
    for (const auto& returned : schema.returns()) {
      const auto tuple = returned.type()->cast<c10::TupleType>();
      if (!tuple) {
        send("", *returned.type(), nullptr, 1);
        continue;
      }
      for (size_t i = 0; i < tuple->elements().size(); ++i) {
        send(tuple->schema() ? tuple->schema()->arguments()[i].name() : "", *tuple->elements()[i], nullptr, 1);
      }
    }
  });
}

char* module_weights(const nt_module* self, void* context, void (*each)(void*, const nt_weight*)) {
  return guarded([&] {
    const auto send = [&](const std::string& name, const at::Tensor& tensor, int32_t buffer) {
      const bool plain = tensor.defined() && tensor.has_storage();
      const nt_weight weight{text_of(name),
                             plain ? tensor.storage().data() : nullptr,
                             plain ? tensor.storage().nbytes() : 0,
                             static_cast<int32_t>(tensor.scalar_type()),
                             device_code(tensor.device()),
                             buffer};
      each(context, &weight);
    };
    for (const auto& item : self->module.named_parameters()) send(item.name, item.value, 0);
    for (const auto& item : self->module.named_buffers()) send(item.name, item.value, 1);
  });
}

// Whether values of this type hold tensors, lists or objects, such as a list of tensors; a module counts as its parts.
bool holds(const c10::Type& type) {
  switch (type.kind()) {
    case c10::TypeKind::AnyType:
    case c10::TypeKind::InterfaceType:
      return true;
    case c10::TypeKind::ClassType:
      return !type.expectRef<c10::ClassType>().is_module();
    default:
      break;
  }
  for (const auto& inner : type.containedTypes()) {
    const auto kind = inner->kind();
    const bool mutates = kind == c10::TypeKind::TensorType || kind == c10::TypeKind::ListType ||
                         kind == c10::TypeKind::DictType || kind == c10::TypeKind::ClassType;
    if (mutates || holds(*inner)) return true;
  }
  return false;
}

// What the nodes of a graph write to; see `module_effects`.
struct Effects {
  const torch::jit::AliasDb& aliases;
  bool state = false;          // Something that the module holds is written.
  bool inputs = false;         // An argument is written.
  bool elements = false;       // A list or dictionary is written that is not evidently new.
  bool state_holds = false;    // The module holds containers of what can be written.

  void visit(torch::jit::Block* block) {
    for (auto* node : block->nodes()) {
      const auto kind = node->kind();
      state |= kind == c10::prim::SetAttr;
      if (kind == c10::prim::GetAttr) {
        state |= aliases.hasWriters(node->output());
        state_holds |= holds(*node->output()->type());
      }
      // What these run is not in this graph.
      const bool opaque = kind == c10::prim::CallMethod || kind == c10::prim::CallFunction ||
                          kind == c10::prim::fork || kind == c10::prim::awaitable || kind == c10::prim::PythonOp;
      state |= opaque;
      inputs |= opaque;
      const auto* schema = node->maybeSchema();
      if (schema != nullptr && schema->is_mutable() && !node->inputs().empty()) {
        const auto* written = node->inputs()[0];
        const auto origin = written->node()->kind();
        elements |= written->type()->kind() != c10::TypeKind::TensorType && origin != c10::prim::ListConstruct &&
                    origin != c10::prim::DictConstruct;
      }
      for (auto* inner : node->blocks()) visit(inner);
    }
  }
};

// Takes out of an inlined graph what would run in training only: a batch norm counts its batches there. The mode is that
// of the whole module from its load on; a graph that sets it has an effect anyway.
void leave_out_training(const Module& module, std::shared_ptr<torch::jit::Graph>& graph) {
  if (!module.hasattr("training") || module.is_training()) return;
  frozen::each_node(graph->block(), [&](torch::jit::Node* node) {
    if (node->kind() != c10::prim::GetAttr || node->s(c10::attr::name) != "training") return;
    // Other objects may have something of that name.
    const auto holder = node->input()->type()->cast<c10::ClassType>();
    if (!holder || !holder->is_module() || node->output()->type()->kind() != c10::TypeKind::BoolType) return;
    const torch::jit::WithInsertPoint here(node);
    node->output()->replaceAllUsesWith(graph->insertConstant(false));
  });
  torch::jit::ConstantPropagationImmutableTypes(graph);
  torch::jit::EliminateDeadCode(graph);
}

// Errs on the side of an effect. To the analysis, arguments and elements of containers are one class of values, which
// `any` stands for: a write to one of them counts for every container there is. `isFrozen` keeps the module's own
// tensors out of that class.
char* module_effects(const nt_module* self, int32_t* inputs, int32_t* state) {
  *inputs = *state = 1;
  return guarded([&] {
    auto graph = self->module.get_method("forward").graph()->copy();
    torch::jit::Inline(*graph);
    leave_out_training(self->module, graph);
    const size_t arguments = graph->inputs().size();
    const auto* any = graph->addInput("any")->setType(c10::TensorType::get());
    const torch::jit::AliasDb aliases(graph, /*isFrozen=*/true);
    Effects effects{aliases};
    effects.visit(graph->block());
    effects.elements |= aliases.hasWriters(any);
    effects.state |= effects.elements && effects.state_holds;
    for (size_t i = 1; i < arguments; ++i) {
      const auto* input = graph->inputs()[i];
      effects.inputs |= aliases.hasWriters(input) || (effects.elements && holds(*input->type()));
    }
    *inputs = effects.inputs;
    *state = effects.state;
  });
}

void module_free(nt_module* self) { delete self; }

char* storages_of(const nt_module* self, int32_t device, nt_storages** out, uint64_t* bytes) {
  return guarded([&] {
    *out = nullptr;
    *bytes = 0;
    if (storages::returns_its_own(self->module)) return;
    auto made = std::make_unique<nt_storages>(nt_storages{{self->module, device_of(device)}});
    *bytes = made->storages.bytes();
    *out = made.release();
  });
}

char* storages_out(nt_storages* self, void* context, int32_t (*write)(void*, void*, uint64_t)) {
  return guarded([&] { self->storages.out(context, write); });
}

char* storages_in(nt_storages* self, void* context, int32_t (*read)(void*, void*, uint64_t)) {
  return guarded([&] { self->storages.in(context, read); });
}

void storages_free(nt_storages* self) { delete self; }

// --- running --------------------------------------------------------------------------------------------------------

IValue value_of(const nt_input& input, const at::Device& device, int32_t float_type) {
  if (input.tensor != nullptr) {
    const auto& tensor = input.tensor->tensor;
    auto there = device.is_cpu() ? tensor : tensor.to(device, /*non_blocking=*/true);
    const bool converted = float_type >= 0 && at::isFloatingType(tensor.scalar_type());
    return converted ? there.to(static_cast<at::ScalarType>(float_type)) : there;
  }
  if (input.strings == nullptr) return {};
  c10::List<std::string> strings;
  strings.reserve(input.strings_len);
  for (size_t i = 0; i < input.strings_len; ++i) strings.push_back(string_of(input.strings[i]));
  return strings;
}

char* run(const nt_module* self, const nt_run* how, const nt_input* inputs, size_t inputs_len, nt_value** out) {
  return guarded([&] {
    const c10::InferenceMode inference(how->inference_mode != 0);
    const at::NoGradGuard no_grad;
    const torch::jit::GraphOptimizerEnabledGuard optimizer(how->optimized_executor != 0);
    const auto device = device_of(how->device);
    std::vector<IValue> stack;
    torch::jit::Kwargs named;
    if (how->as_dictionary != 0) {
      c10::Dict<std::string, at::Tensor> dictionary;
      for (size_t i = 0; i < inputs_len; ++i) {
        dictionary.insert(string_of(inputs[i].name), value_of(inputs[i], device, how->float_type).toTensor());
      }
      stack.emplace_back(std::move(dictionary));
    } else {
      stack.reserve(inputs_len + 1);  // forward() puts the module in front.
      for (size_t i = 0; i < inputs_len; ++i) {
        auto value = value_of(inputs[i], device, how->float_type);
        if (i < how->in_order) {
          stack.push_back(std::move(value));
        } else {
          named.emplace(string_of(inputs[i].name), std::move(value));
        }
      }
    }
    *out = new nt_value{self->module.get_method("forward")(std::move(stack), named)};
  });
}

struct Receiver {
  void* context;
  void (*each)(void*, const nt_output*);

  void other(const std::string& name, const std::string& type) const {
    const nt_output output{text_of(name), nullptr, nullptr, 0, text_of(type)};
    each(context, &output);
  }

  void strings(const std::string& name, const IValue& value) const {
    std::vector<nt_text> texts;
    texts.reserve(value.toListRef().size());
    for (const IValue& item : value.toListRef()) texts.push_back(text_of(item.toStringRef()));
    const nt_output output{text_of(name), nullptr, texts.data(), texts.size(), {nullptr, 0}};
    each(context, &output);
  }

  void flatten(const std::string& name, const IValue& value, int depth) const {
    if (value.isTensor()) {
      const nt_output output{text_of(name), new nt_tensor{value.toTensor()}, nullptr, 0, {nullptr, 0}};
      each(context, &output);
    } else if (value.isList() && value.toList().elementType()->kind() == c10::TypeKind::StringType) {
      strings(name, value);
    } else if (depth == 2) {
      other(name, value.tagKind());
    } else if (value.isTuple()) {
      const auto tuple = value.toTuple();
      const auto type = tuple->type();
      for (size_t i = 0; i < tuple->elements().size(); ++i) {
        flatten(type->schema() ? type->schema()->arguments()[i].name() : "", tuple->elements()[i], depth + 1);
      }
    } else if (value.isList()) {
      for (const IValue& item : value.toList().vec()) flatten("", item, depth + 1);
    } else if (value.isGenericDict() && value.toGenericDict().keyType()->kind() == c10::TypeKind::StringType) {
      for (const auto& item : value.toGenericDict()) flatten(item.key().toStringRef(), item.value(), depth + 1);
    } else {
      other(name, value.tagKind());
    }
  }
};

char* value_outputs(const nt_value* self, void* context, void (*each)(void*, const nt_output*)) {
  return guarded([&] { Receiver{context, each}.flatten("", self->value, 0); });
}

char* value_items(const nt_value* self, void* context, void (*each)(void*, nt_value*)) {
  return guarded([&] {
    TORCH_CHECK(self->value.isList(), "forward returned ", self->value.tagKind(), ", not a list of responses");
    for (const IValue& item : self->value.toListRef()) each(context, new nt_value{item});
  });
}

void value_free(nt_value* self) { delete self; }

void text_free(char* text) { std::free(text); }

}  // namespace

const nt_api* nereid_torch() {
  static const nt_api api{
      sizeof(nt_api), text_free, configure, thread_begin, stream_of_thread, stream_mark, stream_passed, stream_wait,
      stream_free, cuda_count, cuda_memory, cuda_allocated, cuda_empty_cache, tensor_over,
      tensor_empty, tensor_reuse, tensor_to, tensor_host, tensor_keep, tensor_parts, tensor_join, tensor_cast, tensor_view,
      tensor_free, module_new, module_register, module_define, module_save, module_load, module_copy, module_freeze,
      module_optimize, module_convert, module_quantize, module_schema, module_weights, module_effects, module_free,
      storages_of, storages_out, storages_in, storages_free, run, value_outputs, value_items, value_free,
  };
  return &api;
}

// Where the weights of a module lie, and how they leave their device and come back while nobody runs the module.
// Used by shim.cpp only; knows libtorch and not the C interface.
#pragma once
#include <cstdint>
#include <unordered_set>
#include <utility>
#include <vector>

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/types.h>

#include "shim_packed.h"
#include "shim_precision.h"

namespace storages {

using torch::jit::IValue;
using torch::jit::Module;
using torch::jit::Node;

// Whether forward() may return memory that the module holds, which a caller may have after the module ran. Errs on the
// side of yes. `isFrozen` keeps the module's own tensors apart from what arguments and containers may be.
inline bool returns_its_own(const Module& module) {
  auto graph = module.get_method("forward").graph()->copy();
  torch::jit::Inline(*graph);
  const torch::jit::AliasDb aliases(graph, /*isFrozen=*/true);
  bool found = false;
  frozen::each_node(graph->block(), [&](Node* node) {
    const auto kind = node->kind();
    // What these run is not in this graph.
    found |= kind == c10::prim::CallMethod || kind == c10::prim::CallFunction || kind == c10::prim::fork ||
             kind == c10::prim::awaitable || kind == c10::prim::PythonOp;
    if (kind != c10::prim::GetAttr && kind != c10::prim::Constant) return;
    found |= aliases.mayContainAlias(node->output(), graph->outputs());
  });
  return found;
}

// The memory of a module's tensors on one device, each piece once: of its parameters, buffers, other attributes and
// constants. Tensors in another layout, such as those of oneDNN, have no memory of this kind and stay as they are, but for
// those of linear layers.
class Storages {
 public:
  // Moves `bytes` at `data` somewhere, or from there; anything but 0 says that it could not.
  using Move = int32_t (*)(void* context, void* data, uint64_t bytes);

  Storages(Module module, at::Device device) : module_(std::move(module)), device_(device) {
    IValue(module_._ivalue()).visit([&](const IValue& value) {
      if (value.isTensor()) add(value.toTensor());
      return false;
    });
    for (const auto& part : module_.modules()) {
      for (const auto& method : part.get_methods()) {
        frozen::each_node(method.graph()->block(), [&](Node* node) {
          if (precision::is_tensor_constant(node)) add(node->t(c10::attr::value));
        });
      }
    }
  }

  uint64_t bytes() const {
    uint64_t bytes = 0;
    for (const auto& storage : storages_) bytes += storage.nbytes();
    return bytes;
  }

  // Copies all of it, by `write` or, without that, into host memory; and gives it back if that went well.
  void out(void* context, Move write) {
    TORCH_CHECK(write != nullptr || !device_.is_cpu(), "weights on the host have no other host memory to go to");
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> copies;
    for (auto& storage : storages_) {
      if (write == nullptr) {
        copies.push_back(of(storage).to(at::kCPU));
      } else {
        TORCH_CHECK(write(context, storage.mutable_data(), storage.nbytes()) == 0, "weights cannot be written");
      }
    }
    copies_ = std::move(copies);
    for (auto& storage : storages_) storage.set_data_ptr_noswap(c10::DataPtr(nullptr, storage.device()));
  }

  // Brings all of it back, by `read` or from host memory, into new memory of the device; or changes nothing.
  void in(void* context, Move read) {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> made;
    for (size_t i = 0; i < storages_.size(); ++i) {
      const auto bytes = static_cast<int64_t>(storages_[i].nbytes());
      made.push_back(at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device_)));
      if (read == nullptr) {
        made.back().copy_(copies_.at(i));
      } else {
        TORCH_CHECK(read(context, made.back().mutable_data_ptr(), bytes) == 0, "weights cannot be read");
      }
    }
    for (size_t i = 0; i < storages_.size(); ++i) {
      auto* from = made[i].storage().unsafeGetStorageImpl();
      storages_[i].set_data_ptr_noswap(from->set_data_ptr(c10::DataPtr(nullptr, device_)));
    }
    copies_.clear();
    packed::moved(module_);
  }

 private:
  void add(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.has_storage() || tensor.device() != device_) return;
    const auto& storage = tensor.storage();
    if (storage.nbytes() == 0 || storage.data() == nullptr) return;
    if (seen_.insert(storage.unsafeGetStorageImpl()).second) storages_.push_back(storage);
  }

  static at::Tensor of(const c10::Storage& storage) {
    const auto options = at::TensorOptions().dtype(at::kByte).device(storage.device());
    return at::empty({0}, options).set_(storage, 0, {static_cast<int64_t>(storage.nbytes())}, {1});
  }

  Module module_;
  at::Device device_;
  std::vector<c10::Storage> storages_;
  std::unordered_set<const void*> seen_;
  std::vector<at::Tensor> copies_;  // In host memory, while it is out without a `write`.
};

}  // namespace storages

#include "model.hpp"

#include <cstdlib>

#ifndef MOSHI_MLX_C
#include "mlx/compile.h"
#include "mlx/memory.h"
#endif

namespace moshi_mlx {

Model::Model(const std::string& folder, const std::string& checkpoint, const moshi_load_options& options)
    : bundle(folder), worker_(options.own_thread != 0) {
  // Exact float32 products on every chip; Mimi's codes need them. MLX reads this at its first product.
  setenv("MLX_ENABLE_TF32", "0", 0);
  try {
    run([&] {
      mx::set_cache_limit(options.cache_bytes);
      if (options.memory_bytes) mx::set_memory_limit(options.memory_bytes);
      if (options.wired_bytes) mx::set_wired_limit(options.wired_bytes);
      load(checkpoint);
      default_voice_ = voice(default_settings(bundle));
      if (options.warm_up) trace_ahead();
    });
  } catch (...) {
    free_arrays();
    throw;
  }
}

void Model::free_arrays() noexcept {
  try {
    run([this] { default_voice_.reset(), parts_.reset(), parameters_.clear(); });
  } catch (...) {  // the process is ending: MLX may be gone, so its arrays are left to the system
    static_cast<void>(new auto(std::move(default_voice_)));
    static_cast<void>(parts_.release());
    static_cast<void>(new auto(std::move(parameters_)));
  }
}

Model::~Model() { free_arrays(); }

// The published tensors, still in their files; each is one of the bundle's.
Arrays Model::read_published(const std::string& checkpoint) const {
  std::vector<std::map<std::string, Tensor>> headers;
  for (auto& name : bundle.weights) headers.push_back(tensors_in(checkpoint + "/" + name));
  for (auto& [file, name, tensor] : bundle.published) {
    auto where = checkpoint + "/" + bundle.weights[file];
    auto found = headers[file].find(name);
    if (found == headers[file].end()) fail(MOSHI_BAD_CHECKPOINT, where, ": tensor ", name, " is missing");
    if (found->second.dtype != tensor.dtype || found->second.shape != tensor.shape)
      fail(MOSHI_BAD_CHECKPOINT, where, ": tensor ", name, " has another type or shape than when the bundle was made");
  }
  for (size_t file = 0; file < bundle.fingerprints.size(); file++) {
    auto where = checkpoint + "/" + bundle.weights[file];
    if (fingerprint(where) != bundle.fingerprints[file])
      fail(MOSHI_BAD_CHECKPOINT, where, ": is another file than the bundle was made of; export the bundle of these weights");
  }
  std::vector<std::unordered_map<std::string, mx::array>> loaded;
  for (auto& name : bundle.weights) loaded.push_back(load_tensors(checkpoint + "/" + name));
  Arrays all;
  for (auto& [file, name, tensor] : bundle.published) all.push_back(loaded[file].at(name));
  return all;
}

void Model::load(const std::string& checkpoint) {
  auto prepare = bundle.graph("prepare");
  prepare.bind({});
  parameters_ = prepare(read_published(checkpoint));
  if (parameters_.size() != bundle.parameters) fail(MOSHI_BAD_BUNDLE, "prepare.graph: has another number of results");
  // One by one, so that a tensor is read when it is wanted and what was read for it is freed. Matrices stay as they are
  // published where the device reads that order well.
  bool gpu = mx::default_device() == mx::Device(mx::Device::gpu);
  one_ring_ = gpu && bundle.number("one_ring_on_gpu");
  for (auto& parameter : parameters_) {
    parameter = mx::contiguous(parameter, gpu);
    parameter.eval();
    weight_bytes += parameter.nbytes();
  }
  size_t small = bundle.small, temporal = bundle.temporal, encoder = bundle.encoder, decoder = bundle.decoder;
  parts_.reset(new Parts{{}, bound("begin", 0, small + temporal + encoder + decoder), bound("encode", 1 + encoder, 1 + encoder),
                         bound("depth", 2 + small, 2 + small), bound("decode", 1 + small + decoder, 1 + decoder), {}, {}, {}, {}});
  for (int capacity : bundle.capacities) {
    auto size = std::to_string(capacity);
    parts_->think.emplace(capacity, bound("think." + size, 1 + small + temporal, 2 + small + temporal));
    if (capacity != bundle.capacities.back()) parts_->grow.emplace(capacity, bound("grow." + size, temporal, temporal));
    parts_->hear[capacity] = mx::compile(Compiled([this, capacity](const Arrays& x) { return hear_sound(capacity, x); }));
    parts_->hear_codes[capacity] = mx::compile(Compiled([this, capacity](const Arrays& x) { return think(capacity, x); }));
  }
}

Graph Model::bound(const std::string& name, size_t inputs, size_t outputs) const {
  auto graph = bundle.graph(name);
  if (graph.inputs() != inputs || graph.outputs() != outputs) fail(MOSHI_BAD_BUNDLE, name, ".graph: has another number of inputs or results");
  graph.bind(parameters_);
  return graph;
}

std::shared_ptr<const Voice> Model::voice(const moshi_settings& settings) const {
  if (default_voice_ && same_graphs(settings, default_settings(bundle))) return default_voice_;
  std::shared_ptr<Voice> voice(new Voice{Sampler(bundle, settings), {}, {}});
  auto* held = voice.get();  // its functions live as long as it does
  voice->draw = mx::compile(Compiled([this, held](const Arrays& x) { return draw(*held, x); }));
  voice->speak = mx::compile(Compiled([this, held](const Arrays& x) { return speak(*held, x); }));
  return voice;
}

// sound, small, temporal, encoder -> logits, hidden, small, temporal, encoder
Arrays Model::hear_sound(int capacity, const Arrays& x) const {
  size_t state = bundle.small + bundle.temporal;
  Arrays to_encode{x[0]};
  append(to_encode, part(x, 1 + state, bundle.encoder));
  auto encoded = parts_->encode(to_encode);
  Arrays to_think{encoded[0]};
  append(to_think, part(x, 1, state));
  auto out = think(capacity, to_think);
  append(out, part(encoded, 1, bundle.encoder));
  return out;
}

Arrays Model::draw(const Voice& voice, const Arrays& x) const {
  size_t codebooks = size_t(bundle.number("codebooks"));
  Arrays noises(2 + codebooks, x[1]);  // where greedy, nothing looks at the noise, and the key stays
  if (voice.sampler.noise) noises = (*voice.sampler.noise)({x[1]});
  auto text = voice.sampler.text.choose(x[0], noises[0], part(x, 2, 3));
  Arrays out{mx::astype(text, mx::int32), noises.back()};
  append(out, part(noises, 1, codebooks));
  return out;
}

// text, hidden, small, noises, numbers -> column, ready, small
Arrays Model::depth(const Voice& voice, const Arrays& x) const {
  size_t codebooks = size_t(bundle.number("codebooks")), noise = 2 + bundle.small;
  auto numbers = part(x, noise + codebooks, 3);
  Choose choose = [&](int k, const mx::array& logits) {
    if (k < 0 || size_t(k) >= codebooks) fail(MOSHI_BAD_BUNDLE, "depth.graph: no codebook ", k);
    return voice.sampler.audio.choose(logits, x[noise + size_t(k)], numbers);
  };
  return parts_->depth(part(x, 0, noise), &choose);
}

Arrays Model::speak(const Voice& voice, const Arrays& x) const {
  size_t decoder = 2 + bundle.small + size_t(bundle.number("codebooks")) + 3;
  auto out = depth(voice, part(x, 0, decoder));
  Arrays to_decode{out[0]};
  append(to_decode, part(out, 2, bundle.small));
  append(to_decode, part(x, decoder, bundle.decoder));
  auto decoded = parts_->decode(to_decode);
  out[0] = mx::contiguous(mx::astype(out[0], mx::int32), false);
  out.push_back(mx::contiguous(mx::astype(decoded[0], mx::float32), false));
  append(out, part(decoded, 1, bundle.decoder));
  return out;
}

// Trace the frame of every size of the cache (nothing is computed), so that no frame waits for it later.
void Model::trace_ahead() {
  size_t small = bundle.small, temporal = bundle.temporal;
  std::vector<float> silence(size_t(bundle.number("frame_size")));
  std::vector<int> none(size_t(bundle.number("user_codebooks")));
  auto state = fresh();
  auto caches = part(state, small, temporal);
  for (int capacity : bundle.capacities) {
    if (one_ring_ && capacity != bundle.capacities.back()) {
      caches = grow(capacity, caches);
      continue;
    }
    Arrays from_codes{mx::array(none.data(), {1, int(none.size())})};
    append(from_codes, part(state, 0, small));
    append(from_codes, caches);
    Arrays from_sound = from_codes;
    from_sound[0] = mx::array(silence.data(), {1, int(silence.size())});
    append(from_sound, part(state, small + temporal, bundle.encoder));
    hear(capacity)(from_sound);
    hear_codes(capacity)(from_codes);
    if (capacity != bundle.capacities.back()) caches = grow(capacity, caches);
  }
}

bool same_graphs(const moshi_settings& a, const moshi_settings& b) {
  return a.temperature == b.temperature && a.top_k == b.top_k && a.top_p == b.top_p && a.min_p == b.min_p &&
         a.text_temperature == b.text_temperature && a.text_top_k == b.text_top_k && a.text_top_p == b.text_top_p &&
         a.text_min_p == b.text_min_p;
}

}  // namespace moshi_mlx

// Asks Moshi what a file says, and writes what it answers: moshi-talk-cpp BUNDLE CHECKPOINT question.wav reply.wav
#include <cstdlib>
#include <iostream>
#include <memory>
#include <moshi.hpp>

#include "wav.h"

static int talk(char **argv) {
  moshi::Model model(argv[1], argv[2]);
  auto info = model.info();
  size_t samples, frame_size = size_t(info.frame_size);
  const char *why;
  std::unique_ptr<float, decltype(&free)> question(wav_read(argv[3], info.sample_rate, &samples, &why), free);
  if (!question) throw std::runtime_error(std::string(argv[3]) + " " + why);

  auto settings = model.settings();
  settings.seed = 7;
  auto conversation = model.begin(settings);
  std::vector<float> reply, pcm(question.get(), question.get() + samples);
  pcm.resize((samples / frame_size + 50) * frame_size);  // and four seconds of silence to answer in
  for (size_t at = 0; at < pcm.size(); at += frame_size) {
    auto frame = conversation.step(pcm.data() + at, frame_size);
    frame.pcm.resize(frame_size);  // silence while the delay fills
    reply.insert(reply.end(), frame.pcm.begin(), frame.pcm.end());
    std::cout << frame.text << std::flush;
  }
  std::cout << "\n";
  if (wav_write(argv[4], info.sample_rate, reply.data(), reply.size())) throw std::runtime_error(std::string(argv[4]) + " cannot be written");
  return 0;
}

int main(int argc, char **argv) try {
  if (argc == 5) return talk(argv);
  std::cerr << "usage: " << argv[0] << " BUNDLE CHECKPOINT question.wav reply.wav\n";
  return 2;
} catch (const std::exception &error) {
  std::cerr << "\n" << error.what() << "\n";
  return 2;
}

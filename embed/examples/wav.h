/* WAV files, as much as the examples need: 16-bit or float samples in, 16-bit mono out. */
#ifndef WAV_H
#define WAV_H
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif
/* The samples of a file as mono in [-1, 1], to be freed; NULL, and why, where it cannot be read. */
float *wav_read(const char *path, int sample_rate, size_t *samples, const char **why);
/* 0 where all is written. */
int wav_write(const char *path, int sample_rate, const float *pcm, size_t samples);
#ifdef __cplusplus
}
#endif
#endif

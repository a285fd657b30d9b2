// The C table between the program and a plugin built against one MPI library (mpi_plugin.cpp, built once for Open MPI and once for
// MPICH). All calls come from one thread at a time; none but initialize, all_gather and finalize waits for another rank.
#pragma once

#include <stdint.h>

extern "C" {

enum { kOrreryMpiApiVersion = 1 };
enum { kOrreryMpiOk = 0, kOrreryMpiTruncated = 1, kOrreryMpiError = 2 };

// Room for an MPI_Request of either library.
struct OrreryMpiRequest {
  void* words[2];
};

struct OrreryMpiApi {
  int32_t version;
  // MPI_Init_thread and the error handler that returns. 0, or an MPI error code.
  int (*initialize)(int* rank, int* size, int64_t* tag_limit);
  // The library's name and version, one line.
  void (*library_name)(char* text, int64_t capacity);
  int (*send)(const void* data, int64_t bytes, int peer, int tag, OrreryMpiRequest* request);
  int (*receive)(void* data, int64_t bytes, int peer, int tag, OrreryMpiRequest* request);
  // kOrreryMpiOk with *done and, of a receive, the bytes that came; kOrreryMpiTruncated: more came than there was room for.
  int (*test)(OrreryMpiRequest* request, int* done, int64_t* received_bytes);
  // Gives an unfinished request up: a receive is cancelled, a send left to the library.
  void (*abandon)(OrreryMpiRequest* request, int is_receive);
  int (*all_gather)(const void* mine, int bytes, void* all);
  void (*finalize)(void);
};

// The one symbol of a plugin.
const OrreryMpiApi* orrery_mpi_api(void);
}

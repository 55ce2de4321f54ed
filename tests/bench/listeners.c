/* Many clients of one stream, in one thread: so light that what they listen to is what is measured.
 *
 *   listeners PORT COUNT < the request, a line "GO", then a line "REPORT" for each report that is wanted
 *
 * It opens COUNT connections, sends each the request, and says `open SECONDS` once all have the head of their answer.
 * Frames are known by a marker with the moment of the monotonic clock, in nanoseconds, at which they were sent off:
 *   "text":"@<nanoseconds>
 * A report says what came since the one before: frames in all, the least and the most of one client since the
 * beginning, clients that were cut, nanoseconds from sending to reading (p50, p99, the most), seconds between the first
 * and the last, and all bytes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MARK "\"text\":\"@"
#define MARK_LENGTH 9
#define CARRY 64
#define PIECE (256 * 1024)
#define AT_ONCE 200 /* connections that are being opened; more would overrun a server's backlog */
#define BUCKETS 40000

struct client {
  int fd;
  char answered, gone;
  int carried;
  uint64_t frames;
  char carry[CARRY];
};

static struct client *clients;
static int count, opened, begun, gone, epoll;
static struct sockaddr_in address;
static char request[16384];
static size_t request_length;
static char piece[CARRY + PIECE + 1];
static uint64_t frames, bytes, slowest, first_at, last_at;
static uint64_t buckets[BUCKETS]; /* of 10 microseconds; the last is all that took longer */

static uint64_t now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void begin(struct client *one) {
  one->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (one->fd < 0) fail("socket");
  int on = 1;
  setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (connect(one->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) fail("connect");
  struct epoll_event event = {.events = EPOLLOUT, .data.ptr = one};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, one->fd, &event) < 0) fail("epoll_ctl");
  begun++;
}

static void ask(struct client *one) {
  if (send(one->fd, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length) fail("send");
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
  epoll_ctl(epoll, EPOLL_CTL_MOD, one->fd, &event);
}

static void leave(struct client *one) {
  close(one->fd);
  one->gone = 1;
  gone++;
}

static void count_frames(struct client *one, char *text, size_t length, uint64_t at) {
  char *from = text, *end = text + length, *found;
  while ((found = memmem(from, (size_t)(end - from), MARK, MARK_LENGTH)) != NULL) {
    char *digit = found + MARK_LENGTH;
    uint64_t sent = 0;
    while (digit < end && *digit >= '0' && *digit <= '9') sent = sent * 10 + (uint64_t)(*digit++ - '0');
    if (digit == end) { /* cut within the number: looked at again with what comes */
      one->carried = (int)(end - found);
      memcpy(one->carry, found, (size_t)one->carried);
      return;
    }
    uint64_t took = at > sent ? at - sent : 0, bucket = took / 10000;
    buckets[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    if (took > slowest) slowest = took;
    if (frames++ == 0) first_at = at;
    last_at = at;
    one->frames++;
    from = digit;
  }
  size_t left = (size_t)(end - from);
  one->carried = left < MARK_LENGTH - 1 ? (int)left : MARK_LENGTH - 1;
  memcpy(one->carry, end - one->carried, (size_t)one->carried);
}

static void listen_to(struct client *one) {
  memcpy(piece, one->carry, (size_t)one->carried);
  ssize_t got = recv(one->fd, piece + one->carried, PIECE, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    leave(one);
    return;
  }
  bytes += (uint64_t)got;
  size_t length = (size_t)(one->carried + got);
  if (!one->answered) {
    piece[length] = 0;
    if (strncmp(piece, "HTTP/1.1 200", 12) != 0) {
      fprintf(stderr, "%.200s\n", piece);
      exit(1);
    }
    one->answered = 1;
    opened++;
  }
  count_frames(one, piece, length, now());
}

static uint64_t within(double share) {
  uint64_t wanted = (uint64_t)((double)frames * share), seen = 0;
  for (int bucket = 0; bucket < BUCKETS; bucket++)
    if ((seen += buckets[bucket]) > wanted) return (uint64_t)bucket * 10000 + 5000;
  return slowest;
}

static void report(void) {
  uint64_t least = UINT64_MAX, most = 0;
  for (int at = 0; at < count; at++) {
    if (clients[at].frames < least) least = clients[at].frames;
    if (clients[at].frames > most) most = clients[at].frames;
  }
  printf("{\"frames\":%llu,\"least\":%llu,\"most\":%llu,\"cut\":%d,\"p50_ns\":%llu,\"p99_ns\":%llu,\"most_ns\":%llu,"
         "\"seconds\":%.6f,\"bytes\":%llu}\n",
         (unsigned long long)frames, (unsigned long long)least, (unsigned long long)most, gone,
         (unsigned long long)within(0.5), (unsigned long long)within(0.99), (unsigned long long)slowest,
         (double)(last_at - first_at) / 1e9, (unsigned long long)bytes);
  fflush(stdout);
  frames = bytes = slowest = 0;
  memset(buckets, 0, sizeof buckets);
}

static void read_request(void) {
  char line[4096];
  while (fgets(line, sizeof line, stdin) && strcmp(line, "GO\n") != 0) {
    size_t length = strcspn(line, "\n");
    if (request_length + length + 3 > sizeof request) exit(2);
    memcpy(request + request_length, line, length);
    memcpy(request + request_length + length, "\r\n", 3);
    request_length += length + 2;
  }
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  count = atoi(argv[2]);
  clients = calloc((size_t)count, sizeof *clients);
  setvbuf(stdin, NULL, _IONBF, 0);
  read_request();
  address.sin_family = AF_INET;
  address.sin_port = htons((uint16_t)atoi(argv[1]));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  epoll = epoll_create1(0);
  struct epoll_event commands = {.events = EPOLLIN, .data.ptr = NULL}, events[512];
  epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &commands);
  uint64_t since = now();
  int said = 0;
  for (;;) {
    while (begun < count && begun - opened < AT_ONCE) begin(&clients[begun]);
    if (!said && opened == count) {
      printf("open %.6f\n", (double)(now() - since) / 1e9);
      fflush(stdout);
      said = 1;
    }
    int ready = epoll_wait(epoll, events, 512, -1);
    for (int at = 0; at < ready; at++) {
      struct client *one = events[at].data.ptr;
      if (one == NULL) {
        char line[64];
        if (!fgets(line, sizeof line, stdin)) return 0;
        report();
      } else if (!one->gone) {
        if (events[at].events & EPOLLOUT) ask(one);
        else listen_to(one);
      }
    }
  }
}

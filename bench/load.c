// load.c - the benchmark's load generator: HTTP/1.1, JSON or SSE answers, closed or open loop. One thread, loopback only.
//
//   load -u http://127.0.0.1:PORT/PATH -b BODY_FILE [-H 'name: value']... (-c CONNECTIONS | -r RATE) [options]
//
//   -c N   closed loop: N requests under way at any time; -s SECONDS spreads their first starts evenly
//   -r R   open loop: request i is due at i/R seconds, whether or not earlier ones were answered. Its latency counts
//          from then, so that a stall is charged to all it delays (no coordinated omission). At most -m connections [2000]
//   -t S   for how long requests are started [10]        -d S   how long to wait for the rest afterwards [15]
//   -e N   answers are streams with exactly N text deltas; without it they are JSON messages
//   -g M   the digits after the text M in the body become a running number that moves every 16 requests (a session)
//   -l L   label
//
// An answer counts as whole if its framing is, its status is 200 and it holds `"usage"` (JSON) or `"message_stop"` and
// N text deltas (stream). Prints one line of JSON, times in milliseconds: `latency_ms` to the last byte, `first_byte_ms`
// to the first byte of the body. Whatever failed is an error and enters the latencies with the time it took or had waited.
// Exit status: 0 all whole, 1 some not, 2 wrong usage.
#define _GNU_SOURCE
#include "net.h"

#include <math.h>
#include <signal.h>
#include <sys/resource.h>

enum { EVENTS = 512, RECEIVE = 256 << 10, MAX_HEAD = 16384, REQUESTS_PER_SESSION = 16 };
#define RETRY_AFTER (5 * NS_PER_MS)  // closed loop: pause after a failure, lest a dead server be hammered

// Finds a text in a body that comes in pieces. The first character of every text used here (a quotation mark) occurs
// again only as its last, so after a mismatch the search can start afresh without going back.
struct finder {
  const char *text;
  size_t matched;
  unsigned count;
};

static void find_in(struct finder *f, const char *p, const char *end) {
  while (p < end) {
    if (!f->matched && !(p = memchr(p, f->text[0], (size_t)(end - p)))) return;
    f->matched = *p == f->text[f->matched] ? f->matched + 1 : *p == f->text[0];
    p++;
    if (f->text[f->matched]) continue;
    f->count++;
    f->matched = 0;
  }
}

enum state { CLOSED, CONNECTING, BUSY, IDLE };
enum framing { UNTIL_CLOSE, LENGTH, CHUNKED };
enum chunk_state { CHUNK_SIZE, CHUNK_SIZE_REST, CHUNK_DATA, CHUNK_END, TRAILER };
enum progress { MORE, COMPLETE, BROKEN };

struct conn {
  int fd;
  enum state state;
  bool reused, wants_write;
  char *request;  // own copy: its session number differs
  size_t sent;
  uint64_t due, first_byte;  // ns

  struct buffer head;
  int status;  // 0 until the head is whole
  bool keep_alive;
  enum framing framing;
  enum chunk_state chunk;
  uint64_t left;  // bytes to the end of the body or the chunk; in TRAILER: characters in the line
  struct finder end, deltas;
};

struct samples {
  float *ms;
  size_t len, cap;
};

static struct {
  const char *host_and_port, *path, *label, *session_mark;
  int port, connections, max_connections, deltas;  // deltas < 0: JSON
  double rate, seconds, drain_s, spread_s;
} opt = {.label = "", .max_connections = 2000, .deltas = -1, .seconds = 10, .drain_s = 15};

static struct {
  uint64_t sent, ok, connect, reset, status, incomplete, unfinished, opened, body_bytes;
  char first_error[256];
  struct samples latency, first_byte;
} result;

static struct buffer request;
static size_t session_at, session_digits;
static struct sockaddr_in server;
static struct conn *conns;
static struct conn **idle, **closed;  // stacks: the connection used last is used next
static int idle_len, closed_len;
static uint64_t *waiting;  // open loop: due times for which there was no connection yet, a ring
static size_t waiting_at, waiting_len, waiting_cap;
static int epoll, under_way;
static uint64_t last_answer, resume_at;

// ---- results

static void add_sample(struct samples *s, uint64_t from, uint64_t to) {
  if (s->len == s->cap) {
    s->cap = s->cap ? s->cap * 2 : 65536;
    s->ms = xrealloc(s->ms, s->cap * sizeof *s->ms);
  }
  s->ms[s->len++] = (float)((double)(to - from) / (double)NS_PER_MS);
}

__attribute__((format(printf, 3, 4))) static void count_error(uint64_t *kind, uint64_t due, const char *format, ...) {
  (*kind)++;
  add_sample(&result.latency, due, now_ns());
  if (result.first_error[0]) return;
  va_list args;
  va_start(args, format);
  vsnprintf(result.first_error, sizeof result.first_error, format, args);
  va_end(args);
  for (char *p = result.first_error; *p; p++)
    if (*p == '"' || *p == '\\' || (unsigned char)*p < ' ') *p = ' ';
}

static int compare(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static double percentile(const struct samples *s, double p) {
  if (!s->len) return -1;
  size_t rank = (size_t)ceil(p * (double)s->len);
  return s->ms[rank ? rank - 1 : 0];
}

static void print_samples(const char *name, struct samples *s) {
  double sum = 0;
  for (size_t i = 0; i < s->len; i++) sum += s->ms[i];
  if (s->len) qsort(s->ms, s->len, sizeof *s->ms, compare);
  printf(",\"%s\":{\"mean\":%.3f,\"p50\":%.3f,\"p90\":%.3f,\"p99\":%.3f,\"max\":%.3f}", name,
         s->len ? sum / (double)s->len : -1, percentile(s, .5), percentile(s, .9), percentile(s, .99), percentile(s, 1));
}

static uint64_t errors(void) {
  return result.connect + result.reset + result.status + result.incomplete + result.unfinished;
}

static void print_result(uint64_t began) {
  struct rusage use;
  getrusage(RUSAGE_SELF, &use);
  double cpu_s = (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
                 (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
  double span_s = (double)((last_answer ? last_answer : now_ns()) - began) / (double)NS_PER_S;
  printf("{\"label\":\"%s\",\"loop\":\"%s\",\"sent\":%llu,\"ok\":%llu,\"span_s\":%.3f,\"per_s\":%.1f", opt.label,
         opt.connections ? "closed" : "open", (unsigned long long)result.sent, (unsigned long long)result.ok, span_s,
         (double)result.ok / span_s);
  print_samples("latency_ms", &result.latency);
  print_samples("first_byte_ms", &result.first_byte);
  printf(",\"errors\":%llu,\"connect\":%llu,\"reset\":%llu,\"status\":%llu,\"incomplete\":%llu,\"unfinished\":%llu",
         (unsigned long long)errors(), (unsigned long long)result.connect, (unsigned long long)result.reset,
         (unsigned long long)result.status, (unsigned long long)result.incomplete, (unsigned long long)result.unfinished);
  printf(",\"first_error\":\"%s\",\"body_bytes\":%llu,\"opened\":%llu,\"load_cpu_s\":%.3f}\n", result.first_error,
         (unsigned long long)result.body_bytes, (unsigned long long)result.opened, cpu_s);
}

// ---- connections

static void watch(struct conn *c, int operation, bool wants_write) {
  struct epoll_event e = {.events = EPOLLIN | (wants_write ? EPOLLOUT : 0u), .data.ptr = c};
  epoll_ctl(epoll, operation, c->fd, &e);
  c->wants_write = wants_write;
}

static void close_conn(struct conn *c) {
  close(c->fd);
  c->fd = -1;
  c->state = CLOSED;
  closed[closed_len++] = c;
}

static void fail(struct conn *c, uint64_t *kind, const char *what) {
  count_error(kind, c->due, "%s%s%s", what, c->status ? " after part of an answer" : "",
              c->reused ? " on a reused connection" : "");
  resume_at = now_ns() + RETRY_AFTER;
  under_way--;
  close_conn(c);
}

static void send_rest(struct conn *c) {
  while (c->sent < request.len) {
    ssize_t n = send(c->fd, c->request + c->sent, request.len - c->sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) return watch(c, EPOLL_CTL_MOD, true);
    if (n < 0) return fail(c, &result.reset, strerror(errno));
    c->sent += (size_t)n;
  }
  if (c->wants_write) watch(c, EPOLL_CTL_MOD, false);
}

static void number_session(struct conn *c, uint64_t number) {
  for (size_t i = session_digits; i-- > 0; number /= 10) c->request[session_at + i] = (char)('0' + number % 10);
}

static void begin(struct conn *c, uint64_t due) {
  c->due = due;
  c->sent = 0;
  c->status = 0;
  c->first_byte = 0;
  c->head.len = 0;
  c->end = (struct finder){.text = opt.deltas < 0 ? "\"usage\"" : "\"message_stop\""};
  c->deltas = (struct finder){.text = "\"text_delta\""};
  number_session(c, result.sent / REQUESTS_PER_SESSION);
  result.sent++;
  under_way++;
}

static void connect_and_begin(struct conn *c, uint64_t due) {
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (c->fd < 0) die("load: socket: %s", strerror(errno));
  no_delay(c->fd);
  c->reused = false;
  c->state = CONNECTING;
  begin(c, due);
  result.opened++;
  if (connect(c->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS)
    return fail(c, &result.connect, strerror(errno));
  watch(c, EPOLL_CTL_ADD, true);
}

// Whether the other side has ended an idle connection, or sent what nobody asked for, and epoll has not said so yet.
static bool is_gone(const struct conn *c) {
  char byte;
  return recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || errno != EAGAIN;
}

// False: every connection is taken.
static bool start_request(uint64_t due) {
  while (idle_len) {
    struct conn *c = idle[--idle_len];
    if (is_gone(c)) {
      close_conn(c);
      continue;
    }
    c->reused = true;
    c->state = BUSY;
    begin(c, due);
    send_rest(c);
    return true;
  }
  if (!closed_len) return false;
  connect_and_begin(closed[--closed_len], due);
  return true;
}

static void finish(struct conn *c) {
  uint64_t t = now_ns();
  bool whole = c->end.count && (opt.deltas < 0 || c->deltas.count == (unsigned)opt.deltas);
  last_answer = t;
  under_way--;
  if (c->status != 200) {
    count_error(&result.status, c->due, "status %d", c->status);
    resume_at = t + RETRY_AFTER;
  } else if (!whole) {
    count_error(&result.incomplete, c->due, "incomplete answer: %u end marks, %u deltas", c->end.count, c->deltas.count);
  } else {
    result.ok++;
    add_sample(&result.latency, c->due, t);
    add_sample(&result.first_byte, c->due, c->first_byte);
  }
  if (!c->keep_alive) return close_conn(c);
  c->state = IDLE;
  idle[idle_len++] = c;
}

// ---- answers

static void take_body(struct conn *c, const char *bytes, size_t len) {
  if (!len) return;
  if (!c->first_byte) c->first_byte = now_ns();
  result.body_bytes += len;
  find_in(&c->end, bytes, bytes + len);
  if (opt.deltas >= 0) find_in(&c->deltas, bytes, bytes + len);
}

static int hex_digit(char ch) {
  if (ch >= '0' && ch <= '9') return ch - '0';
  ch = (char)(ch | 32);
  return ch >= 'a' && ch <= 'f' ? ch - 'a' + 10 : -1;
}

static enum progress take_chunked(struct conn *c, const char *p, size_t len) {
  for (const char *end = p + len; p < end;) {
    if (c->chunk == CHUNK_DATA) {
      size_t n = (uint64_t)(end - p) < c->left ? (size_t)(end - p) : (size_t)c->left;
      take_body(c, p, n);
      p += n;
      c->left -= n;
      if (!c->left) c->chunk = CHUNK_END;
      continue;
    }
    char ch = *p++;
    switch (c->chunk) {
      case CHUNK_SIZE:
        if (hex_digit(ch) >= 0) {
          c->left = c->left * 16 + (uint64_t)hex_digit(ch);
          break;
        }
        c->chunk = CHUNK_SIZE_REST;
        __attribute__((fallthrough));  // this character may be the end of the line
      case CHUNK_SIZE_REST:
        if (ch == '\n') c->chunk = c->left ? CHUNK_DATA : TRAILER;
        break;
      case CHUNK_END:
        if (ch == '\n') c->chunk = CHUNK_SIZE;
        break;
      default:  // TRAILER: lines up to an empty one
        if (ch == '\n' && !c->left) return COMPLETE;
        if (ch == '\n') c->left = 0;
        else if (ch != '\r') c->left++;
    }
  }
  return MORE;
}

static enum progress take_framed(struct conn *c, const char *p, size_t len) {
  if (c->framing == CHUNKED) return take_chunked(c, p, len);
  if (c->framing == UNTIL_CLOSE) return take_body(c, p, len), MORE;
  if (len > c->left) return BROKEN;
  take_body(c, p, len);
  c->left -= len;
  return c->left ? MORE : COMPLETE;
}

static void read_head(struct conn *c, const char *end) {
  const char *head = c->head.data, *length = find_header(head, end, "content-length");
  c->status = atoi(head + strlen("HTTP/1.1 "));
  c->left = length ? strtoull(length, NULL, 10) : 0;
  c->framing = header_is(head, end, "transfer-encoding", "chunked") ? CHUNKED : length ? LENGTH : UNTIL_CLOSE;
  if (c->framing == CHUNKED) c->left = 0;
  c->chunk = CHUNK_SIZE;
  c->keep_alive = c->framing != UNTIL_CLOSE && !header_is(head, end, "connection", "close");
}

static enum progress take(struct conn *c, const char *bytes, size_t len) {
  if (c->status) return take_framed(c, bytes, len);
  size_t before = c->head.len;
  buffer_append(&c->head, bytes, len);
  char *blank = memmem(c->head.data, c->head.len, "\r\n\r\n", 4);
  if (!blank) return c->head.len > MAX_HEAD ? BROKEN : MORE;
  read_head(c, blank + 2);
  if (c->status < 100) return BROKEN;
  size_t used = (size_t)(blank + 4 - c->head.data) - before;
  if (c->status < 200) {  // interim answer: the real one follows
    c->status = 0;
    c->head.len = 0;
    return len > used ? take(c, bytes + used, len - used) : MORE;
  }
  if (c->framing == LENGTH && !c->left) return COMPLETE;
  return take_framed(c, bytes + used, len - used);
}

static void leave_idle(struct conn *c) {
  for (int i = 0; i < idle_len; i++)
    if (idle[i] == c) idle[i] = idle[--idle_len];
  close_conn(c);
}

static void receive(struct conn *c) {
  static char bytes[RECEIVE];
  ssize_t got = recv(c->fd, bytes, sizeof bytes, 0);
  if (got < 0 && errno == EAGAIN) return;
  if (c->state == IDLE) return leave_idle(c);
  if (got == 0 && c->status && c->framing == UNTIL_CLOSE) return finish(c);
  if (got <= 0) return fail(c, &result.reset, got ? strerror(errno) : "closed");
  switch (take(c, bytes, (size_t)got)) {
    case COMPLETE: return finish(c);
    case BROKEN: return fail(c, &result.incomplete, "broken framing");
    default: return;
  }
}

static void on_event(struct conn *c, uint32_t events) {
  if (c->state == CLOSED) return;
  if (c->state == CONNECTING) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) return fail(c, &result.connect, strerror(error));
    if (!(events & EPOLLOUT)) return;
    c->state = BUSY;
  }
  if (c->state == BUSY && events & EPOLLOUT) send_rest(c);
  if (c->state != CLOSED && events & ~(uint32_t)EPOLLOUT) receive(c);
}

// ---- the run

static void wait_for_connection(uint64_t due) {
  if (waiting_len == waiting_cap) {
    size_t cap = waiting_cap ? waiting_cap * 2 : 4096;
    uint64_t *ring = xrealloc(NULL, cap * sizeof *ring);
    for (size_t i = 0; i < waiting_len; i++) ring[i] = waiting[(waiting_at + i) % waiting_cap];
    free(waiting);
    waiting = ring;
    waiting_at = 0;
    waiting_cap = cap;
  }
  waiting[(waiting_at + waiting_len++) % waiting_cap] = due;
}

static uint64_t after(uint64_t began, double seconds) { return began + (uint64_t)(seconds * (double)NS_PER_S); }

// Starts what is due in the closed loop; returns when to look again.
static uint64_t drive_closed(uint64_t began, uint64_t stop) {
  uint64_t t = now_ns();
  if (t >= stop) return UINT64_MAX;
  if (t < resume_at) return resume_at;
  double elapsed_s = (double)(t - began) / (double)NS_PER_S;
  bool spreading = elapsed_s < opt.spread_s;
  int target = spreading ? 1 + (int)(opt.connections * elapsed_s / opt.spread_s) : opt.connections;
  while (under_way < target && now_ns() >= resume_at && start_request(now_ns())) {}
  if (under_way < target) return resume_at;
  return spreading ? after(began, opt.spread_s * target / opt.connections) + 1 : stop;
}

// The same for the open loop.
static uint64_t drive_open(uint64_t began, uint64_t stop) {
  static uint64_t started;
  for (; waiting_len && start_request(waiting[waiting_at]); waiting_len--) waiting_at = (waiting_at + 1) % waiting_cap;
  for (;; started++) {
    uint64_t due = after(began, (double)started / opt.rate);
    if (due >= stop) return UINT64_MAX;
    if (due > now_ns()) return due;
    if (waiting_len || !start_request(due)) wait_for_connection(due);
  }
}

static void run(uint64_t began) {
  uint64_t stop = after(began, opt.seconds), give_up = after(stop, opt.drain_s);
  struct epoll_event events[EVENTS];
  for (;;) {
    uint64_t wake = opt.connections ? drive_closed(began, stop) : drive_open(began, stop), t = now_ns();
    if (t >= give_up || (t >= stop && !under_way && !waiting_len)) return;
    if (wake > give_up) wake = give_up;
    if (t < stop && wake > stop) wake = stop;
    int n = wait_events(epoll, events, EVENTS, wake);
    for (int i = 0; i < n; i++) on_event(events[i].data.ptr, events[i].events);
  }
}

static void count_unfinished(void) {
  for (int i = 0; i < opt.max_connections; i++)
    if (conns[i].state == BUSY || conns[i].state == CONNECTING)
      count_error(&result.unfinished, conns[i].due, "unfinished at the end");
  for (; waiting_len; waiting_len--, waiting_at = (waiting_at + 1) % waiting_cap)
    count_error(&result.unfinished, waiting[waiting_at], "no connection until the end");
}

// ---- set-up

static void read_file(const char *path, struct buffer *into) {
  FILE *file = fopen(path, "rb");
  if (!file) die("load: %s: %s", path, strerror(errno));
  for (size_t n = 1; n; into->len += n) {
    buffer_reserve(into, 65536);
    n = fread(into->data + into->len, 1, into->cap - into->len, file);
  }
  fclose(file);
}

static void parse_url(char *url) {
  static const char scheme[] = "http://127.0.0.1:";
  if (strncmp(url, scheme, strlen(scheme))) die("load: the URL must begin with %s", scheme);
  char *slash = strchr(url + strlen(scheme), '/');
  if (!slash) die("load: the URL has no path");
  opt.port = atoi(url + strlen(scheme));
  opt.path = strdup(slash);
  *slash = 0;
  opt.host_and_port = url + strlen("http://");
}

static void make_request(const char *body_file, const struct buffer *headers) {
  struct buffer body = {0};
  char line[2048];
  read_file(body_file, &body);
  buffer_append(&request, line,
                (size_t)snprintf(line, sizeof line,
                                 "POST %s HTTP/1.1\r\nhost: %s\r\nuser-agent: signalbox-bench/1\r\naccept: */*\r\n"
                                 "content-type: application/json\r\ncontent-length: %zu\r\n",
                                 opt.path, opt.host_and_port, body.len));
  buffer_append(&request, headers->data, headers->len);
  buffer_append(&request, "\r\n", 2);
  size_t body_at = request.len;
  buffer_append(&request, body.data, body.len);
  free(body.data);
  if (!opt.session_mark) return;
  char *mark = memmem(request.data + body_at, request.len - body_at, opt.session_mark, strlen(opt.session_mark));
  if (!mark) die("load: the body does not hold %s", opt.session_mark);
  session_at = (size_t)(mark - request.data) + strlen(opt.session_mark);
  while (session_at + session_digits < request.len && hex_digit(request.data[session_at + session_digits]) >= 0)
    session_digits++;
}

static void make_connections(void) {
  size_t n = (size_t)opt.max_connections;
  conns = calloc(n, sizeof *conns);
  idle = calloc(n, sizeof(struct conn *));
  closed = calloc(n, sizeof(struct conn *));
  if (!conns || !idle || !closed) die("out of memory");
  for (size_t i = n; i-- > 0;) {
    conns[i].fd = -1;
    conns[i].request = xrealloc(NULL, request.len);
    memcpy(conns[i].request, request.data, request.len);
    buffer_reserve(&conns[i].head, 2048);
    closed[closed_len++] = &conns[i];
  }
}

static void parse_options(int argc, char **argv) {
  const char *body_file = NULL;
  struct buffer headers = {0};
  buffer_reserve(&headers, 1);
  for (int o; (o = getopt(argc, argv, "u:b:H:c:r:s:m:t:d:e:g:l:")) > 0;) switch (o) {
      case 'u': parse_url(optarg); break;
      case 'b': body_file = optarg; break;
      case 'H': buffer_append(&headers, optarg, strlen(optarg)), buffer_append(&headers, "\r\n", 2); break;
      case 'c': opt.connections = atoi(optarg); break;
      case 'r': opt.rate = atof(optarg); break;
      case 's': opt.spread_s = atof(optarg); break;
      case 'm': opt.max_connections = atoi(optarg); break;
      case 't': opt.seconds = atof(optarg); break;
      case 'd': opt.drain_s = atof(optarg); break;
      case 'e': opt.deltas = atoi(optarg); break;
      case 'g': opt.session_mark = optarg; break;
      case 'l': opt.label = optarg; break;
      default: die("usage: see the head of load.c");
    }
  if (!opt.path || !body_file || (opt.connections > 0) == (opt.rate > 0))
    die("load: -u, -b and one of -c and -r are needed; see the head of load.c");
  if (opt.connections) opt.max_connections = opt.connections;
  make_request(body_file, &headers);
  free(headers.data);
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  ask_for_exact_timers();
  parse_options(argc, argv);
  make_connections();
  server = loopback(opt.port);
  epoll = epoll_create1(0);
  uint64_t began = now_ns();
  run(began);
  count_unfinished();
  print_result(began);
  return errors() != 0;
}

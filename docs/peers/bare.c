/* Measures the machine's own limits over the loopback: bare loops that do only the necessary work.
 *
 *   bare port                   a free port of 127.0.0.1
 *   bare file SOURCE TARGET     sends SOURCE over a socket into a new, preallocated TARGET:
 *                               seconds until the last write, seconds until the sync has ended
 *   bare trips SECONDS          requests 10 KiB repeatedly: answers a second
 *   bare commits log|new FILE SECONDS
 *                               sends 10 KiB that are written to FILE, synced and answered: number a second;
 *                               `log` overwrites earlier data, as databases do; `new` appends
 *
 * Sender and receiver are two processes, joined by one TCP connection. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 256 << 10, OBJECT = 10 << 10, WORD = 32, LOG = 64 << 20 };

static char buffer[BLOCK];

/* Returns a system call's result; exits if it failed. */
static long must(long result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void write_all(int to, const char *from, size_t len) {
    for (size_t n; len > 0; from += n, len -= n)
        n = must(write(to, from, len), "write");
}

/* Reads exactly `len` bytes; returns 0 if the peer has closed the connection. */
static int read_all(int from, char *to, size_t len) {
    for (size_t n; len > 0; to += n, len -= n)
        if ((n = must(read(from, to, len), "read")) == 0)
            return 0;
    return 1;
}

static int listening(struct sockaddr_in *at) {
    socklen_t len = sizeof *at;
    int fd = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
    memset(at, 0, sizeof *at);
    at->sin_family = AF_INET;
    at->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    must(bind(fd, (struct sockaddr *)at, sizeof *at), "bind");
    must(listen(fd, 1), "listen");
    must(getsockname(fd, (struct sockaddr *)at, &len), "getsockname");
    return fd;
}

/* A connection whose other end is served by `server` in a process of its own, which ends when it is closed. */
static int served_by(void (*server)(int, const char *), const char *path) {
    struct sockaddr_in at;
    int one = 1, listener = listening(&at), end;
    if (must(fork(), "fork") == 0) {
        end = must(accept(listener, NULL, NULL), "accept");
        close(listener);
        must(setsockopt(end, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), "setsockopt");
        server(end, path);
        exit(0);
    }
    close(listener);
    end = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
    must(connect(end, (struct sockaddr *)&at, sizeof at), "connect");
    must(setsockopt(end, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), "setsockopt");
    return end;
}

/* Closes the connection and waits for the process at its other end. */
static void done(int end) {
    int status;
    close(end);
    must(wait(&status), "wait");
    if (status != 0)
        exit(1);
}

static void send_file(int end, const char *path) {
    int file = must(open(path, O_RDONLY), path);
    if (!read_all(end, buffer, WORD))
        return;
    for (size_t n; (n = must(read(file, buffer, BLOCK), path)) > 0;)
        write_all(end, buffer, n);
}

static void answer(int end, const char *unused) {
    (void)unused;
    while (read_all(end, buffer, WORD))
        write_all(end, buffer, OBJECT);
}

static void commit(int end, const char *path) {
    int file = must(open(path, O_WRONLY), path);
    off_t at = 0, size = must(lseek(file, 0, SEEK_END), "lseek");
    must(lseek(file, 0, SEEK_SET), "lseek");
    for (; read_all(end, buffer, OBJECT); at += OBJECT) {
        if (size > 0 && at + OBJECT > size)
            at = must(lseek(file, 0, SEEK_SET), "lseek");
        write_all(file, buffer, OBJECT);
        must(fdatasync(file), "fdatasync");
        write_all(end, buffer, WORD);
    }
}

/* A file for commits: empty, or with all of its bytes in their places already. */
static const char *commit_file(const char *path, int log) {
    int file = must(open(path, O_WRONLY | O_CREAT | O_EXCL, 0600), path);
    for (int written = 0; log && written < LOG; written += BLOCK)
        write_all(file, buffer, BLOCK);
    must(fsync(file), "fsync");
    close(file);
    return path;
}

static void receive_file(const char *source, const char *target) {
    struct stat whole;
    must(stat(source, &whole), source);
    int end = served_by(send_file, source);
    double begun = now();
    write_all(end, buffer, WORD);
    int file = must(open(target, O_WRONLY | O_CREAT | O_EXCL, 0600), target);
    must(fallocate(file, 0, 0, whole.st_size), "fallocate");
    for (size_t n; (n = must(read(end, buffer, BLOCK), "read")) > 0;)
        write_all(file, buffer, n);
    double written = now();
    must(fdatasync(file), "fdatasync");
    printf("%.6f %.6f\n", written - begun, now() - begun);
    done(end);
}

/* Sends `request` bytes and reads `reply` bytes repeatedly. */
static void call(int end, size_t request, size_t reply, double seconds) {
    double begun = now(), passed;
    long calls = 0;
    do {
        write_all(end, buffer, request);
        if (!read_all(end, buffer, reply))
            exit(1);
        calls++;
    } while ((passed = now() - begun) < seconds);
    printf("%.1f\n", calls / passed);
    done(end);
}

int main(int argc, char **argv) {
    struct sockaddr_in at;
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "port") && argc == 2) {
        listening(&at);
        printf("%d\n", ntohs(at.sin_port));
    } else if (!strcmp(what, "file") && argc == 4) {
        receive_file(argv[2], argv[3]);
    } else if (!strcmp(what, "trips") && argc == 3) {
        call(served_by(answer, NULL), WORD, OBJECT, atof(argv[2]));
    } else if (!strcmp(what, "commits") && argc == 5) {
        call(served_by(commit, commit_file(argv[3], !strcmp(argv[2], "log"))), OBJECT, WORD, atof(argv[4]));
    } else {
        fprintf(stderr, "usage: bare port | file SOURCE TARGET | trips SECONDS | commits log|new FILE SECONDS\n");
        return 2;
    }
    return 0;
}

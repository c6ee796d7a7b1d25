/* The behaviours in C, and as C++ where compiled as that: suite BEHAVIOUR [NUMBER]. Each one ends by itself, whatever limit fails. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <netinet/in.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 65536
#define HELD_S 30

static char block[BLOCK];

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void rest(double seconds)
{
    double until = now(CLOCK_MONOTONIC) + seconds;
    while (now(CLOCK_MONOTONIC) < until) {
        struct timespec t = {1, 0};
        if (until - now(CLOCK_MONOTONIC) < 1)
            t.tv_sec = 0, t.tv_nsec = 10000000;
        nanosleep(&t, NULL);
    }
}

static void burn(clockid_t clock, double seconds)
{
    volatile unsigned long n = 0;
    double until = now(clock) + seconds;
    while (now(clock) < until)
        for (int i = 0; i < 10000; i++)
            n = n + (unsigned long)i;
}

/* Memory that is really there: every page is written to. */
static void touch(size_t bytes)
{
    for (size_t done = 0; done < bytes; done += 1 << 20) {
        char *piece = (char *)malloc(1 << 20);
        if (piece == NULL)
            exit(4);
        for (size_t at = 0; at < 1 << 20; at += 4096)
            ((volatile char *)piece)[at] = 1;
    }
}

static void write_text(const char *text)
{
    if (write(1, text, strlen(text)) < 0)
        exit(5);
}

static void write_out(int fd, size_t bytes)
{
    memset(block, 'x', sizeof block);
    for (size_t done = 0; done < bytes;) {
        ssize_t n = write(fd, block, bytes - done < BLOCK ? bytes - done : BLOCK);
        if (n < 0 && errno != EINTR)
            exit(5);
        done += n > 0 ? (size_t)n : 0;
    }
}

/* A child of nobody, in a session of its own, which has let go of what we were given. */
static int detached(void)
{
    pid_t child = fork();
    if (child != 0) {
        if (child > 0)
            waitpid(child, NULL, 0);
        return 0;
    }
    setsid();
    if (fork() != 0)
        _exit(0);
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; null >= 0 && fd < 3; fd++)
        dup2(null, fd);
    return 1;
}

static void fork_bomb(long most)
{
    long made = 0;
    while (made < most) {
        pid_t child = fork();
        if (child < 0)
            break;
        if (child == 0) {
            rest(0.3);
            _exit(0);
        }
        made++;
    }
    while (made-- > 0)
        wait(NULL);
}

static void zombies(long most)
{
    for (long made = 0; made < most; made++) {
        pid_t child = fork();
        if (child < 0)
            break;
        if (child == 0)
            _exit(0);
    }
    rest(0.05);
}

static void litter(const char *directory)
{
    for (int i = 0; i < 20; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/leakcheck-litter-%ld-%d", directory, (long)getpid(), i);
        int fd = open(path, O_CREAT | O_WRONLY | O_EXCL, 0600);
        if (fd >= 0 && write(fd, "litter", 6) < 0)
            break;
    }
}

static void ipc_litter(void)
{
    litter("/dev/shm");
    int segment = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
    if (segment >= 0)
        shmat(segment, NULL, 0);
    semget(IPC_PRIVATE, 1, IPC_CREAT | 0600);
    msgget(IPC_PRIVATE, IPC_CREAT | 0600);
}

static void fd_hog(long most)
{
    for (long i = 0; i < most; i++)
        if (open("/dev/null", O_RDONLY) < 0)
            break;
}

static void listeners(void)
{
    struct sockaddr_in any;
    memset(&any, 0, sizeof any);
    any.sin_family = AF_INET;
    any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int tcp = socket(AF_INET, SOCK_STREAM, 0);
    if (tcp >= 0 && bind(tcp, (struct sockaddr *)&any, sizeof any) == 0)
        listen(tcp, 1);
    struct sockaddr_un name;
    memset(&name, 0, sizeof name);
    name.sun_family = AF_UNIX;
    int length = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "leakcheck-%ld", (long)getpid());
    int local = socket(AF_UNIX, SOCK_STREAM, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
    if (local >= 0 && bind(local, (struct sockaddr *)&name, size) == 0)
        listen(local, 1);
}

static void mounts(void)
{
    char path[] = "/tmp/leakcheck-mount-XXXXXX";
    if (mkdtemp(path) == NULL)
        return;
    int refused = mount("leakcheck", path, "tmpfs", 0, "size=64k");
    if (unshare(CLONE_NEWNS) == 0 || unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0)
        refused += mount("leakcheck", path, "tmpfs", 0, "size=64k");
    printf("mounts: %s\n", refused ? "refused" : "made");
}

static void big_file(size_t bytes)
{
    char path[] = "/tmp/leakcheck-file-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0)
        exit(6);
    unlink(path);
    write_out(fd, bytes);
}

static void uncaught(void)
{
#ifdef __cplusplus
    throw 1;
#else
    exit(1);
#endif
}

static void hold(void (*take)(void))
{
    if (detached()) {
        if (take != NULL)
            take();
        rest(HELD_S);
        _exit(0);
    }
    rest(0.05);
}

static int fatal(const char *name)
{
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    if (strcmp(name, "segv") == 0)
        *(volatile int *)8 = 1;
    else if (strcmp(name, "abort") == 0)
        abort();
    else if (strcmp(name, "exception") == 0)
        uncaught();
    else
        return 0;
    return 1;
}

static int hostile(const char *name, long number)
{
    if (strcmp(name, "fork_bomb") == 0)
        fork_bomb(number);
    else if (strcmp(name, "daemonise") == 0)
        hold(NULL);
    else if (strcmp(name, "zombies") == 0)
        zombies(number);
    else if (strcmp(name, "temp_litter") == 0)
        litter("/tmp");
    else if (strcmp(name, "shm_litter") == 0)
        ipc_litter();
    else if (strcmp(name, "fd_hog") == 0)
        fd_hog(number);
    else if (strcmp(name, "sockets") == 0)
        hold(listeners);
    else if (strcmp(name, "mounts") == 0)
        mounts();
    else
        return 0;
    return 1;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    long number = argc > 2 ? strtol(argv[2], NULL, 10) : 0;
    if (strcmp(name, "hello") == 0)
        puts("hello");
    else if (strcmp(name, "cpu") == 0)
        burn(CLOCK_PROCESS_CPUTIME_ID, number / 1e3);
    else if (strcmp(name, "memory") == 0 || strcmp(name, "allocate") == 0)
        touch((size_t)number);
    else if (strcmp(name, "output") == 0 || strcmp(name, "flood") == 0)
        write_out(1, (size_t)number);
    else if (strcmp(name, "big_file") == 0)
        big_file((size_t)number);
    else if (strcmp(name, "spin") == 0)
        burn(CLOCK_MONOTONIC, (double)number);
    else if (strcmp(name, "sleep") == 0)
        rest((double)number);
    else if (strcmp(name, "ignore_sigterm") == 0) {
        signal(SIGTERM, SIG_IGN);
        write_text("ready\n");
        rest((double)number);
    } else if (strcmp(name, "exit") == 0)
        return (int)number;
    else if (!fatal(name) && !hostile(name, number)) {
        fprintf(stderr, "no behaviour %s\n", name);
        return 64;
    }
    return 0;
}

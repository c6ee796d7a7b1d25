// A chain of processes, each of which starts the next and ends: chains HOW SECONDS MICROSECONDS [FILE].
// HOW the next is started: fork, vfork, parent (CLONE_PARENT makes it a sibling), double (by another, in new sessions), thread (a
// thread starts it, when the first one has ended), exec (a thread that is not the first executes the program anew before), cgroup
// (clone3 into one of two new cgroups). Each adds a byte to FILE.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char **args;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void anew(void) {
    execv("/proc/self/exe", args);
    _exit(1);
}

static void *executes(void *unused) {
    anew();
    return unused;
}

static void *forks(void *unused) {
    usleep(atoi(args[3]) + 1);
    if (fork() == 0) anew();
    _exit(0);
    return unused;
}

// Waits until PID 1 has waited for most of those that have ended: they count until then, and others need room too.
static void leave_room(void) {
    struct sysinfo machine;
    while (!sysinfo(&machine) && machine.procs > 16000) usleep(1000);
}

// A new cgroup beside the last, below the v2 cgroup that the first process was in.
static int cgroup(const char *name) {
    char line[4096], mount[2048] = "", path[8192];
    FILE *f = fopen("/proc/self/mounts", "r");
    while (f && !mount[0] && fgets(line, sizeof line, f))
        if (strstr(line, " cgroup2 ")) sscanf(line, "%*s %2047s", mount);
    if (f) fclose(f);
    int found = -1;
    f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "0::", 3)) {
            line[strcspn(line, "\n")] = 0;
            char *last = strstr(line, "/chains-");
            if (last) *last = 0;
            snprintf(path, sizeof path, "%s%s/chains-%s", mount, line + 3, name);
            mkdir(path, 0755);
            found = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        }
    if (f) fclose(f);
    return found;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    args = argv;
    const char *how = argv[1];
    if (!getenv("UNTIL")) {
        char until[64];
        snprintf(until, sizeof until, "%f", now() + atof(argv[2]));
        setenv("UNTIL", until, 1);
        int null = open("/dev/null", O_RDWR);
        for (int fd = 0; fd < 3; fd++) dup2(null, fd);
        if (fork()) _exit(0);
        setsid();
    }
    pthread_t thread;
    for (unsigned n = 0; now() < atof(getenv("UNTIL")); n++) {
        if (!strcmp(how, "exec") && !getenv("ANEW")) {
            setenv("ANEW", "1", 1);
            pthread_create(&thread, NULL, executes, NULL);
            pause();
        }
        unsetenv("ANEW");
        leave_room();
        if (argc > 4) {
            int file = open(argv[4], O_WRONLY | O_APPEND | O_CLOEXEC);
            if (write(file, ".", 1) < 0) _exit(1);
            close(file);
        }
        if (!strcmp(how, "thread")) {
            pthread_create(&thread, NULL, forks, NULL);
            syscall(SYS_exit, 0);
        }
        if (atoi(argv[3])) usleep(atoi(argv[3]));
        long next = -1;
        if (!strcmp(how, "vfork")) {
            if ((next = vfork()) == 0) anew();
        } else if (!strcmp(how, "parent")) {
            next = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
        } else if (!strcmp(how, "cgroup")) {
            struct clone_args a = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = cgroup(n % 2 ? "a" : "b")};
            next = syscall(SYS_clone3, &a, sizeof a);
            close(a.cgroup);
        } else {
            next = fork();
            if (next == 0 && !strcmp(how, "double")) {
                setsid();
                if (fork()) _exit(0);
                setsid();
            }
        }
        if (next > 0) _exit(0);
        if (next < 0) usleep(1000);
    }
    _exit(0);
}

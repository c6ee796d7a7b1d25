/* Looks at each process that appears in the pid namespace as early as it can, and writes what it leads to: "NAME DEVICE LINK" a line.
   Usage: racenewborn RACERS SECONDS OUTPUT. Writes "marker" where a root has /tmp/$CASE-marker, which only the host has. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

static int out;
static char marker[64];

static void tell(int pid, const char *name) {
    char path[300], link[300], line[900];
    struct stat st;
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    ssize_t n = readlink(path, link, sizeof link - 1);
    if (n < 0 || stat(path, &st) != 0) return;
    link[n] = 0;
    int length = snprintf(line, sizeof line, "%s %u:%u %s\n", name, major(st.st_dev), minor(st.st_dev), link);
    if (write(out, line, length) < 0) _exit(1);
}

static void tell_all(int pid, const char *directory) {
    char path[300], name[600];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, directory);
    DIR *dir = opendir(path);
    if (!dir) return;
    for (struct dirent *e; (e = readdir(dir));)
        if (e->d_name[0] != '.') {
            snprintf(name, sizeof name, "%s/%s", directory, e->d_name);
            tell(pid, name);
        }
    closedir(dir);
}

static void look(int pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/root", pid);
    int root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) return;
    struct stat st;
    if (fstatat(root, marker, &st, 0) == 0 && write(out, "marker\n", 7) < 0) _exit(1);
    close(root);
    tell(pid, "root");
    tell(pid, "exe");
    tell(pid, "cwd");
    tell_all(pid, "fd");
    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    for (int fd = 3; pidfd >= 0 && fd < 30; fd++)
        if (syscall(SYS_pidfd_getfd, pidfd, fd, 0) >= 0 && write(out, "getfd 0:0 -\n", 12) < 0) _exit(1);
    if (pidfd >= 0) close(pidfd);
    tell_all(pid, "ns");
    tell_all(pid, "map_files");
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    out = open(argv[3], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    snprintf(marker, sizeof marker, "tmp/%s-marker", getenv("CASE"));
    int racers = atoi(argv[1]), last = 0;
    for (int n = 0; n < racers; n++)
        if ((last = fork()) == 0) {
            setsid();
            time_t end = time(NULL) + atoi(argv[2]);
            int next = getpid() + racers - n, dead = 0;
            while (time(NULL) < end) {
                char path[64];
                snprintf(path, sizeof path, "/proc/%d", next + dead);
                if (access(path, F_OK) != 0) {
                    // A number may be another racer's, or have been too short-lived.
                    dead = (dead + 1) % 3;
                    continue;
                }
                next += dead + 1;
                dead = 0;
                look(next - 1);
            }
            _exit(0);
        }
    return 0;
}

/* Makes 1,000 orphans that PID 1 adopts, lets them all die at once, and writes how long it took until each was reaped. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
int main(int argc, char **argv)
{
    int count = atoi(argv[2]), gate[2], pids[2];
    static int pid[100000];
    (void)argc;
    for (int round = 0; round < 11; round++) {
        if (pipe(gate) || pipe(pids))
            return 1;
        if (fork() == 0) {
            for (int i = 0; i < count; i++) {
                int child = fork();
                if (child == 0) {
                    char c;
                    close(gate[1]);
                    _exit(read(gate[0], &c, 1) != 0);
                }
                if (write(pids[1], &child, sizeof child) != sizeof child)
                    _exit(1);
            }
            _exit(0);
        }
        close(gate[0]);
        for (int i = 0; i < count; i++)
            if (read(pids[0], &pid[i], sizeof pid[i]) != sizeof pid[i])
                return 1;
        wait(0);
        usleep(50000);
        long long start = now();
        close(gate[1]);
        for (int i = 0; i < count; i++)
            while (kill(pid[i], 0) == 0)
                usleep(100);
        long long took = now() - start;
        char line[64];
        int fd = open(argv[1], O_WRONLY | O_APPEND | O_CREAT, 0644);
        int size = snprintf(line, sizeof line, "orphans %lld 0\n", took);
        if (write(fd, line, size) != size)
            return 1;
        close(fd);
        close(pids[0]);
        close(pids[1]);
    }
    for (;;)
        pause();
}

/* A service for the bench: writes its name, the time and its pid as one line to a file, then waits. */
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    struct timespec now;
    char line[128];
    clock_gettime(CLOCK_MONOTONIC, &now);
    int fd = open(argv[1], O_WRONLY | O_APPEND | O_CREAT, 0644);
    int size = snprintf(line, sizeof line, "%s %lld %d\n", argc > 2 ? argv[2] : "-",
                        now.tv_sec * 1000000000LL + now.tv_nsec, getpid());
    if (write(fd, line, size) != size)
        return 1;
    close(fd);
    for (;;)
        pause();
}

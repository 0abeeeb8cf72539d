// Whether a guest's full barrier is one for a process outside of it. Linked statically: one half is run
// in the guest, the other beside it.
//
// As in a virtqueue, driver and device each write a word, pass a full barrier and read the other's
// word: the descriptor's flags, and the wish for a notification. Then at least one of them sees what
// the other wrote. If neither does, each waits for the other.
//
//   driver                               tells at which guest address the words are, and plays
//   device FILE ADDRESS ROUNDS SECONDS   plays on the guest's memory, so many rounds, for so long at
//                                        most; prints in how many neither saw the other, and of how many
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, OVER = 0xffffffff, DELAYS = 120 };

// Each on lines of its own. A round begins when the driver has said that it is ready for it and the
// device has said go, and ends with the driver's answer: ANSWERED, and what it read.
struct words {
    _Alignas(256) volatile uint32_t of_driver;
    _Alignas(256) volatile uint32_t of_device;
    _Alignas(256) volatile uint32_t ready;
    _Alignas(256) volatile uint32_t go;
    _Alignas(256) volatile uint32_t answer;
};
enum { ANSWERED = 2 };

static int driver(void) {
    struct words *words =
        mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_LOCKED, -1, 0);
    int pagemap = open("/proc/self/pagemap", O_RDONLY);
    uint64_t entry;
    memset(words, 0, PAGE);
    if (pread(pagemap, &entry, 8, (uintptr_t)words / PAGE * 8) != 8) return 1;
    printf("at %llx\n", (unsigned long long)((entry & ((1ull << 55) - 1)) * PAGE));
    fflush(stdout);
    for (uint32_t round = 1;; round++) {
        uint32_t read;
        words->ready = round;
        while (words->go != round)
            if (words->go == OVER) return 0;
        // What Linux's virtio_mb() is.
        __asm__ volatile("movl $1, %1\n\tlock addl $0, -4(%%rsp)\n\tmovl %2, %0"
                         : "=r"(read), "=m"(words->of_driver)
                         : "m"(words->of_device)
                         : "memory", "cc");
        words->answer = ANSWERED | read;
    }
}

static int device(const char *path, off_t address, uint32_t rounds, time_t seconds) {
    int file = open(path, O_RDWR);
    struct words *words = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, address);
    if (words == MAP_FAILED) return perror(path), 1;
    uint32_t neither = 0, random = 1, round = 1;
    for (time_t end = time(NULL) + seconds; round <= rounds && time(NULL) < end; round++) {
        while (words->ready != round) {}
        words->of_driver = words->of_device = words->answer = 0;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        words->go = round;
        random = random * 1103515245 + 12345;
        for (volatile uint32_t delay = (random >> 16) % DELAYS; delay; delay--) {}
        words->of_device = 1;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        uint32_t read = words->of_driver, answer;
        while (!(answer = words->answer)) {}
        neither += answer == ANSWERED && !read;
    }
    words->go = OVER;
    printf("%u %u\n", neither, round - 1);
    return 0;
}

int main(int count, char **words) {
    if (count == 2) return driver();
    if (count == 6)
        return device(words[2], strtoull(words[3], NULL, 16), atoi(words[4]), atoi(words[5]));
    return 2;
}

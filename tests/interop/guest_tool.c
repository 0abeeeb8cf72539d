// What busybox has no applet for: asks a guest's I2C buses, GPIO chips and input devices through
// Linux's own interfaces. Linked statically, run in the guest by tests of those devices.
//
//   i2c PATH ADDRESS (wHEX | rLENGTH)...   one transaction; prints what was read, or the error
//   quick PATH ADDRESS                     whether somebody answers to a message of no bytes
//   lines PATH                             the names of a chip's lines
//   get PATH LINE                          the level on an input
//   drive PATH LINE LEVEL...               an output that goes through these levels, then is let go
//   watch PATH COUNT LINE...               prints COUNT edges of these inputs, as LINE rising
//   describe PATH                          every answer of an input device: REQUEST SIZE HEX
//   events PATH COUNT                      prints events until COUNT sequences are complete
//   led PATH CODE LEVEL
#include <errno.h>
#include <fcntl.h>
#include <linux/gpio.h>
#include <linux/i2c-dev.h>
#include <linux/i2c.h>
#include <linux/input.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { MESSAGES = 8, LENGTH = 8192, ANSWER = 128 };

static int failed(const char *what) {
    printf("%s: %s\n", what, strerrorname_np(errno));
    return 1;
}

static void print_hex(const uint8_t *bytes, int count) {
    for (int i = 0; i < count; i++) printf("%02x", bytes[i]);
    putchar('\n');
}

static int i2c(int fd, int address, int count, char **words) {
    static uint8_t buffers[MESSAGES][LENGTH];
    struct i2c_msg messages[MESSAGES];
    for (int i = 0; i < count; i++) {
        int reads = words[i][0] == 'r';
        int length = reads ? atoi(words[i] + 1) : (int)strlen(words[i] + 1) / 2;
        for (int at = 0; !reads && at < length; at++)
            sscanf(words[i] + 1 + 2 * at, "%2hhx", &buffers[i][at]);
        messages[i] = (struct i2c_msg){
            .addr = address, .flags = reads ? I2C_M_RD : 0, .len = length, .buf = buffers[i]};
    }
    struct i2c_rdwr_ioctl_data transaction = {messages, count};
    int done = ioctl(fd, I2C_RDWR, &transaction);
    if (done < 0) return failed("i2c");
    if (done < count) {
        printf("i2c: %d of %d\n", done, count);
        return 1;
    }
    for (int i = 0; i < count; i++)
        if (messages[i].flags & I2C_M_RD) print_hex(buffers[i], messages[i].len);
    puts("ok");
    return 0;
}

static int quick(int fd, int address) {
    struct i2c_smbus_ioctl_data request = {.read_write = I2C_SMBUS_WRITE, .size = I2C_SMBUS_QUICK};
    if (ioctl(fd, I2C_SLAVE_FORCE, address) || ioctl(fd, I2C_SMBUS, &request))
        return failed("quick");
    puts("ok");
    return 0;
}

static int lines(int fd) {
    struct gpiochip_info chip;
    if (ioctl(fd, GPIO_GET_CHIPINFO_IOCTL, &chip)) return failed("chip");
    for (unsigned i = 0; i < chip.lines; i++) {
        struct gpio_v2_line_info line = {.offset = i};
        if (ioctl(fd, GPIO_V2_GET_LINEINFO_IOCTL, &line)) return failed("line");
        printf("%u [%s]\n", i, line.name);
    }
    puts("ok");
    return 0;
}

// A request for some lines of a chip; -1 on failure.
static int request(int fd, uint64_t flags, int count, char **words) {
    struct gpio_v2_line_request wanted = {.num_lines = count, .config.flags = flags};
    for (int i = 0; i < count; i++) wanted.offsets[i] = atoi(words[i]);
    strcpy(wanted.consumer, "test");
    return ioctl(fd, GPIO_V2_GET_LINE_IOCTL, &wanted) ? -1 : wanted.fd;
}

static int get(int fd, char **line) {
    struct gpio_v2_line_values values = {.mask = 1};
    int held = request(fd, GPIO_V2_LINE_FLAG_INPUT, 1, line);
    if (held < 0 || ioctl(held, GPIO_V2_LINE_GET_VALUES_IOCTL, &values)) return failed("get");
    printf("%d\n", (int)values.bits & 1);
    return 0;
}

static int drive(int fd, char **line, int count, char **levels) {
    int held = request(fd, GPIO_V2_LINE_FLAG_OUTPUT, 1, line);
    if (held < 0) return failed("drive");
    for (int i = 0; i < count; i++) {
        struct gpio_v2_line_values values = {.mask = 1, .bits = atoi(levels[i])};
        if (ioctl(held, GPIO_V2_LINE_SET_VALUES_IOCTL, &values)) return failed("level");
    }
    puts("ok");
    return 0;
}

static int watch(int fd, int edges, int count, char **words) {
    uint64_t flags = GPIO_V2_LINE_FLAG_INPUT | GPIO_V2_LINE_FLAG_EDGE_RISING |
                     GPIO_V2_LINE_FLAG_EDGE_FALLING;
    int held = request(fd, flags, count, words);
    if (held < 0) return failed("watch");
    puts("watching");
    for (int i = 0; i < edges; i++) {
        struct gpio_v2_line_event event;
        if (read(held, &event, sizeof event) != sizeof event) return failed("edge");
        int rising = event.id == GPIO_V2_LINE_EVENT_RISING_EDGE;
        printf("%u %s\n", event.offset, rising ? "rising" : "falling");
    }
    return 0;
}

static void answer(int fd, unsigned long question) {
    uint8_t bytes[ANSWER] = {0};
    int size = _IOC_SIZE(question);
    if (ioctl(fd, question, bytes) < 0) size = 0;
    printf("%lu %d ", question, size);
    print_hex(bytes, size);
}

static int describe(int fd) {
    answer(fd, EVIOCGID);
    answer(fd, EVIOCGNAME(ANSWER));
    answer(fd, EVIOCGUNIQ(ANSWER));
    answer(fd, EVIOCGPROP(ANSWER));
    for (int type = 0; type < EV_CNT; type++) answer(fd, EVIOCGBIT(type, ANSWER));
    for (int axis = 0; axis < ABS_CNT; axis++) answer(fd, EVIOCGABS(axis));
    puts("ok");
    return 0;
}

static int events(int fd, int sequences) {
    puts("reading");
    while (sequences) {
        struct input_event event;
        if (read(fd, &event, sizeof event) != sizeof event) return failed("event");
        printf("event %d %d %d\n", event.type, event.code, event.value);
        sequences -= event.type == EV_SYN && event.code == SYN_REPORT;
    }
    puts("ok");
    return 0;
}

static int led(int fd, int code, int level) {
    struct input_event pair[2] = {{.type = EV_LED, .code = code, .value = level}, {.type = EV_SYN}};
    if (write(fd, pair, sizeof pair) != sizeof pair) return failed("led");
    puts("ok");
    return 0;
}

int main(int count, char **words) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count < 3) return 2;
    const char *command = words[1];
    int fd = open(words[2], O_RDWR);
    if (fd < 0) return failed(words[2]);
    char **rest = words + 3;
    count -= 3;
    if (!strcmp(command, "i2c") && count > 1 && count <= 1 + MESSAGES)
        return i2c(fd, strtol(rest[0], NULL, 0), count - 1, rest + 1);
    if (!strcmp(command, "quick") && count == 1) return quick(fd, strtol(rest[0], NULL, 0));
    if (!strcmp(command, "lines")) return lines(fd);
    if (!strcmp(command, "get") && count == 1) return get(fd, rest);
    if (!strcmp(command, "drive") && count > 1) return drive(fd, rest, count - 1, rest + 1);
    if (!strcmp(command, "watch") && count > 1)
        return watch(fd, atoi(rest[0]), count - 1, rest + 1);
    if (!strcmp(command, "describe")) return describe(fd);
    if (!strcmp(command, "events") && count == 1) return events(fd, atoi(rest[0]));
    if (!strcmp(command, "led") && count == 2) return led(fd, atoi(rest[0]), atoi(rest[1]));
    return 2;
}

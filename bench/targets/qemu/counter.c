/* A QEMU plugin (API version 1) that counts executed instructions.
 *
 *     qemu-aarch64 -plugin counter.so,out=FILE program
 *
 * Whenever the program asks for the priority of its process group, getpriority(PRIO_PGRP, ...), which nothing else
 * does, the number of instructions until then goes to a line of FILE. Counting is exact for one thread.
 *
 * The declarations are those of qemu-plugin.h that are needed; no distribution packages that header with QEMU 7.2. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
enum { ADD_U64 = 0, GETPRIORITY = 141 /* of AArch64 */, PRIO_PGRP = 1 };

typedef uint64_t plugin_id;
struct qemu_plugin_tb; /* a block of guest instructions, translated as a whole */
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int operation, void *, uint64_t);
typedef void syscall_callback(plugin_id, unsigned vcpu, int64_t number, uint64_t first, uint64_t, uint64_t, uint64_t,
                              uint64_t, uint64_t, uint64_t, uint64_t);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id, syscall_callback *);

EXPORT int qemu_plugin_version = 1;
static uint64_t executed;
static int out = -1;

static void on_translation(plugin_id id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &executed, qemu_plugin_tb_n_insns(block));
}

static void on_syscall(plugin_id id, unsigned vcpu, int64_t number, uint64_t first, uint64_t b, uint64_t c, uint64_t d,
                       uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    (void)id, (void)vcpu, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number == GETPRIORITY && first == PRIO_PGRP)
        dprintf(out, "%llu\n", (unsigned long long)executed);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int count, char **arguments)
{
    (void)info;
    if (count != 1 || strncmp(arguments[0], "out=", 4) != 0)
        return 1;
    out = open(arguments[0] + 4, O_WRONLY | O_APPEND | O_CREAT, 0600);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    return out < 0;
}

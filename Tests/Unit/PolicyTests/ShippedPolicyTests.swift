import Foundation
import Policy
import Testing

@Suite("The policies that ship")
struct ShippedPolicyTests {
    private let all = ["null", "loop", "nbd", "memory", "crypt", "overlay", "fault"]

    private func shippedAccess() throws -> AccessPolicy {
        try AccessPolicy(
            parsing: Array(try Data(contentsOf: policyFolder.appending(path: "access.policy"))),
            file: "access.policy", targets: all, user: { _ in nil }, group: { $0 == "ubd" ? 990 : nil })
    }

    private func files(in folder: String) throws -> Set<String> {
        Set(try FileManager.default.contentsOfDirectory(atPath: policyFolder.appending(path: folder).path))
    }

    @Test("root may everything, members of ubd may within limits, nobody else may anything")
    func access() throws {
        let policy = try shippedAccess()
        #expect(policy.warnings.isEmpty)
        let nothing = AccessUsage(devices: 0, memoryBytes: 0)
        for target in all where target != "memory" {
            // The defaults of `ubd add`.
            let usual = AccessRequest(
                target: target, readOnly: false, queues: 1, depth: 128, maxIOBytes: 512 << 10, sizeBytes: 1 << 40)
            #expect(
                policy.decide(AccessPeer(uid: 1000, groups: [1000, 990]), usual, usage: nothing)
                    == .allowed(policy.rules[1]))
            #expect(
                policy.decide(AccessPeer(uid: 1002, groups: [1002]), usual, usage: nothing)
                    == .refused(.noRule(candidates: policy.rules)))
        }
        // Members have no memory disks until their line gives them some.
        let disk = AccessRequest(
            target: "memory", readOnly: false, queues: 1, depth: 128, maxIOBytes: 512 << 10, sizeBytes: 1 << 28,
            diskBytes: 1 << 28)
        #expect(
            policy.decide(AccessPeer(uid: 1000, groups: [990]), disk, usage: nothing)
                == .refused(.noRule(candidates: [policy.rules[0]])))
        #expect(
            policy.decide(AccessPeer(uid: 0, groups: [0]), disk, usage: nothing) == .allowed(policy.rules[0]))
        let root = try #require(policy.overview(for: AccessPeer(uid: 0, groups: [0]), targets: all))
        #expect(root.limits.maxDevices == nil && root.limits.maxMemoryBytes == nil && root.limits.zeroCopy)
        let member = try #require(policy.overview(for: AccessPeer(uid: 1000, groups: [990]), targets: all))
        #expect(member.limits.maxDevices == 16 && member.limits.maxMemoryBytes == 256 << 20)
        #expect(!member.limits.zeroCopy && !member.limits.otherFileSystem && !member.limits.networkFileSystem)
        #expect(root.limits.anyServer && root.limits.connections == 16)
        #expect(!member.limits.anyServer && member.limits.connections == 4)
    }

    @Test("every seccomp file parses, and each target has one, which includes the loop's")
    func seccomp() throws {
        let names = try files(in: "seccomp")
        #expect(
            names == [
                "worker-setup.policy", "worker-loop.policy", "target-null.policy", "target-loop.policy",
                "target-nbd.policy", "target-memory.policy", "target-crypt.policy", "target-overlay.policy",
                "target-fault.policy",
                "broker.policy",
            ])
        let loop = try SeccompPolicy(parsing: "worker-loop.policy", read: shipped("seccomp"))
        for name in names where name.hasPrefix("target-") {
            let target = try SeccompPolicy(parsing: name, read: shipped("seccomp"))
            #expect(target.rules.starts(with: loop.rules))
        }
    }

    @Test("the loop's policy allows its seven calls, reads and writes descriptor 3 alone, and nothing else")
    func loop() throws {
        let policy = try SeccompPolicy(parsing: "worker-loop.policy", read: shipped("seccomp"))
        let control: SeccompRule.Verdict =
            .test(alternatives: [[ArgumentTest(index: 0, mask: .max, value: 3)]], otherwise: nil)
        #expect(
            policy.rules.map(\.name) == [
                "io_uring_enter", "read", "write", "restart_syscall", "rt_sigreturn", "exit", "exit_group",
            ])
        #expect(policy.rules.map(\.verdict) == [.allow, control, control, .allow, .allow, .allow, .allow])
    }

    @Test("no worker's seccomp policy allows executable memory, a new process, a path, a socket or a signal")
    func neverAllowed() throws {
        let never: Set<String> = [
            "execve", "execveat", "fork", "vfork", "open", "openat", "openat2", "socket", "connect", "bind", "accept",
            "accept4", "kill", "tkill", "tgkill", "ptrace", "mount", "setns", "unshare", "bpf", "pidfd_getfd",
            "process_vm_readv", "process_vm_writev", "mremap", "memfd_create", "userfaultfd", "keyctl", "sendto",
        ]
        for name in try files(in: "seccomp") where name != "broker.policy" {
            let policy = try SeccompPolicy(parsing: name, read: shipped("seccomp"))
            #expect(never.isDisjoint(with: policy.rules.map(\.name)), "\(name)")
            #expect(
                policy.rules.allSatisfy { !["mmap", "mprotect", "clone"].contains($0.name) || $0.verdict != .allow })
        }
    }

    @Test("the broker's seccomp policy allows no program by path, no other process's memory, no module, no network")
    func broker() throws {
        let never: Set<String> = [
            "execve", "ptrace", "process_vm_readv", "process_vm_writev", "bpf", "init_module", "finit_module",
            "delete_module", "kexec_load", "setns", "open_by_handle_at", "move_mount", "fsmount", "open_tree",
            "mknod", "mknodat", "chroot", "swapon", "swapoff", "reboot", "keyctl", "userfaultfd", "perf_event_open",
            "kill", "tkill", "fork", "vfork", "personality", "syslog", "ioperm", "iopl", "accept", "quotactl",
        ]
        let policy = try SeccompPolicy(parsing: "broker.policy", read: shipped("seccomp"))
        #expect(never.isDisjoint(with: policy.rules.map(\.name)))
        for name in [
            "mmap", "mprotect", "clone", "socket", "socketpair", "execveat", "mount", "umount2", "unshare", "prctl",
            "ioctl",
        ] {
            let rule = try #require(policy.rules.first { $0.name == name })
            #expect(rule.verdict != .allow, "\(name)")
        }
    }

    @Test("nbd's socket is in a ring that reads and writes and does nothing else, in every mode")
    func socketRings() throws {
        for mode in RingMode.all {
            let queue = try RingPolicy(parsing: "nbd.ring", for: mode, read: shipped("rings"))
            #expect(queue.operations.map(RingPolicy.operationName) == ["READ", "URING_CMD"])
            let socket = try RingPolicy(parsing: "nbd-sockets.ring", for: mode, read: shipped("rings"))
            #expect(socket.operations.map(RingPolicy.operationName) == ["READV", "WRITEV"])
            #expect(socket.requiredFlags == 1 && socket.allowedFlags == 0 && socket.registerOperations == [12])
        }
    }

    @Test("null's rings may fetch and commit, loop's also read, write, flush and punch; nothing can be registered")
    func rings() throws {
        #expect(
            try files(in: "rings") == [
                "common.ring", "null.ring", "loop.ring", "nbd.ring", "nbd-sockets.ring", "memory.ring", "crypt.ring",
                "overlay.ring", "fault.ring",
            ])
        let null = try RingPolicy(parsing: "null.ring", read: shipped("rings"))
        let loop = try RingPolicy(parsing: "loop.ring", read: shipped("rings"))
        #expect(null.operations.map(RingPolicy.operationName) == ["URING_CMD"])
        let crypt = try RingPolicy(parsing: "crypt.ring", read: shipped("rings"))
        #expect(crypt.operations.map(RingPolicy.operationName) == ["FSYNC", "READ", "WRITE", "URING_CMD"])
        let overlay = try RingPolicy(parsing: "overlay.ring", read: shipped("rings"))
        #expect(overlay.operations.map(RingPolicy.operationName) == ["READ", "WRITE", "URING_CMD", "FUTEX_WAIT"])
        #expect(
            loop.operations.map(RingPolicy.operationName) == [
                "FSYNC", "FALLOCATE", "READ", "WRITE", "URING_CMD", "FUTEX_WAIT",
            ])
        // Without a copy only registered buffers are used, and only in batch mode may the kernel choose a buffer.
        let zeroCopy = RingMode(zeroCopy: true)
        let nullPages = try RingPolicy(parsing: "null.ring", for: zeroCopy, read: shipped("rings"))
        let loopPages = try RingPolicy(parsing: "loop.ring", for: zeroCopy, read: shipped("rings"))
        #expect(nullPages.operations.map(RingPolicy.operationName) == ["READ_FIXED", "URING_CMD"])
        #expect(
            loopPages.operations.map(RingPolicy.operationName)
                == ["FSYNC", "READ_FIXED", "WRITE_FIXED", "FALLOCATE", "URING_CMD", "FUTEX_WAIT"])
        for mode in RingMode.all {
            for name in ["null.ring", "loop.ring", "nbd.ring", "crypt.ring"] {
                let policy = try RingPolicy(parsing: name, for: mode, read: shipped("rings"))
                #expect(policy.allowedFlags == (mode.batch ? 1 << 5 : 0))
                #expect(policy.requiredFlags == 1)
                #expect(policy.registerOperations == [12])
            }
        }
        for policy in [null, loop] {
            #expect(policy.registerOperations == [12])
            #expect(policy.requiredFlags == 1)
            #expect(policy.allowedFlags == 0)
        }
    }
}

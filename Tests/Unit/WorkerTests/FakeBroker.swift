import Glibc
import KernelABI
import Policy
import PolicyCompiler
import SystemCalls
import Targets
import WorkerProtocol

/// Starts the real worker program, as the launcher would, and speaks the broker's side of the protocol. The sandbox around
/// it is missing: that belongs to the launcher, and to the lab.
struct FakeBroker: ~Copyable {
    let control: FileDescriptor
    let pid: pid_t
    private let workerEnd: Int32

    /// BPF: kill the process at the first call.
    static let killAll: UInt64 = 0x8000_0000_0000_0006

    /// The sandbox of a target, from policy/.
    static func bundle(_ target: TargetManifest) throws -> SandboxBundle {
        let folder = #filePath.split(separator: "/").dropLast(4).reduce("") { $0 + "/" + $1 } + "/policy"
        let setup = try SeccompPolicy(parsing: "worker-setup.policy") { try readFile("\(folder)/seccomp/\($0)") }
        let loop = try SeccompPolicy(parsing: "target-\(target.name).policy") {
            try readFile("\(folder)/seccomp/\($0)")
        }
        return SandboxBundle(
            setupFilter: try SeccompCompiler.compile(setup).instructions,
            loopFilter: try SeccompCompiler.compile(loop).instructions, ring: try seal("\(target.name).ring", folder),
            socketRing: target.submissions.hasSocket ? try seal("\(target.name)-sockets.ring", folder) : nil)
    }

    private static func seal(_ policy: String, _ folder: String) throws -> RingSeal {
        let ring = try RingPolicy(parsing: policy) { try readFile("\(folder)/rings/\($0)") }
        return RingSeal(
            operations: ring.operations, registerOperations: ring.registerOperations, flagsAllowed: ring.allowedFlags,
            flagsRequired: ring.requiredFlags)
    }

    static var workerPath: String { buildFolder + "/ubd-worker" }

    /// The folder of the program, beside the tests.
    private static var buildFolder: String {
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = readlink("/proc/self/exe", &buffer, buffer.count)
        let own = String(decoding: buffer[..<max(0, count)].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return own.split(separator: "/", omittingEmptySubsequences: false).dropLast().joined(separator: "/")
    }

    /// Starts the worker with `device` in /dev/ublkcN's place.
    /// `standIn`: with the library that lets /dev/null be mapped (Tests/Support/CStandIn).
    init(device: Int32, standIn: Bool = false) throws {
        let pair = try makeMessagePair()
        var patience = timeval(tv_sec: 20, tv_usec: 0)
        setsockopt(pair.first.raw, SOL_SOCKET, SO_RCVTIMEO, &patience, socklen_t(MemoryLayout<timeval>.size))
        pid = try FakeBroker.spawn([], control: pair.second.raw, device: device, standIn: standIn)
        workerEnd = pair.second.release()
        control = FileDescriptor(owning: pair.first.release())
    }

    deinit {
        close(workerEnd)
        kill(pid, SIGKILL)
        var status: Int32 = 0
        waitpid(pid, &status, 0)
    }

    /// Runs the program with `arguments`, descriptors 3 and 4 as given (-1: none), all others closed. A worker without
    /// root's rights needs no_new_privs for its walls, which setpriv(1) gives it.
    static func spawn(
        _ arguments: [String], control: Int32 = -1, device: Int32 = -1, output: Int32 = -1, standIn: Bool = false
    ) throws -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0)
        for stream: Int32 in 1...2 {
            if output >= 0 {
                posix_spawn_file_actions_adddup2(&actions, output, stream)
            } else {
                posix_spawn_file_actions_addopen(&actions, stream, "/dev/null", O_RDWR, 0)
            }
        }
        // By way of high numbers, since the given descriptors may themselves be 3 or 4.
        if control >= 0 { posix_spawn_file_actions_adddup2(&actions, control, 1000) }
        if device >= 0 { posix_spawn_file_actions_adddup2(&actions, device, 1001) }
        if control >= 0 { posix_spawn_file_actions_adddup2(&actions, 1000, WorkerDescriptor.control) }
        if device >= 0 { posix_spawn_file_actions_adddup2(&actions, 1001, WorkerDescriptor.device) }
        posix_spawn_file_actions_addclosefrom_np(&actions, control >= 0 ? 5 : 3)
        let command =
            (geteuid() == 0 ? [workerPath] : ["/usr/bin/setpriv", "--no-new-privs", workerPath]) + arguments
        var argv: [UnsafeMutablePointer<CChar>?] = command.map { strdup($0) } + [nil]
        let variables =
            ["SWIFT_BACKTRACE=enable=no"] + (standIn ? ["LD_PRELOAD=\(buildFolder)/libubd-stand-in.so"] : [])
        var environment: [UnsafeMutablePointer<CChar>?] = variables.map { strdup($0) } + [nil]
        defer { for text in argv + environment { free(text) } }
        var pid: pid_t = 0
        let status = posix_spawn(&pid, command[0], &actions, nil, &argv, &environment)
        if status != 0 { throw SystemError("start \(command[0])", status) }
        return pid
    }

    /// Sends the launch message with its four files; `parking` is the end with the client's files.
    func launch(_ message: LaunchMessage, bundle: [UInt8]? = nil, parking: borrowing FileDescriptor) throws {
        let memory = FileDescriptor(owning: try call("memfd_create") { memfd_create("bundle", 0) })
        try memory.writeAll(bundle ?? FakeBroker.bundle(message.target).encoded())
        let page = FileDescriptor(owning: try call("memfd_create") { memfd_create("statistics", 0) })
        try call("ftruncate") { ftruncate(page.raw, off_t(StatisticsPage.bytes(queues: Int(message.queues)))) }
        try send(control.raw, message.encoded(), files: [parking.raw, control.raw, page.raw, memory.raw])
    }

    /// The worker's next message; nil when it sends no more.
    func next() throws -> WorkerMessage? {
        var bytes = [UInt8](repeating: 0, count: longestWorkerMessage)
        let count = try call("recv") { recv(control.raw, &bytes, bytes.count, 0) }
        return WorkerMessage(decoding: Array(bytes[..<count]))
    }

    /// The ids of its threads, without those that the kernel made for a ring. One of those that ends while the kernel lists them
    /// cuts the list short (next_tid in fs/proc/base.c), so the list counts when it is the same twice.
    func threads() throws -> [String] {
        var last = try listThreads()
        while true {
            let now = try listThreads()
            if now == last { return now }
            last = now
        }
    }

    private func listThreads() throws -> [String] {
        guard let folder = opendir("/proc/\(pid)/task") else { throw SystemError("opendir", errno) }
        defer { closedir(folder) }
        var found: [String] = []
        while let entry = readdir(folder) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            guard Int32(name) != nil else { continue }
            let label = String(decoding: try readFile("/proc/\(pid)/task/\(name)/comm"), as: UTF8.self)
            if !label.hasPrefix("iou-") { found.append(name) }
        }
        return found
    }

    /// Stops it, as the broker does around START_DEV, waits until it is stopped, and continues it.
    func stopAndContinue() throws {
        kill(pid, SIGSTOP)
        var info = siginfo_t()
        try call("waitid") { waitid(P_PID, id_t(pid), &info, WSTOPPED | WEXITED | WNOWAIT) }
        guard Int(info.si_code) == Int(CLD_STOPPED) else { throw SystemError("it ended instead of stopping", ESRCH) }
        kill(pid, SIGCONT)
    }

    /// Whether it still runs, or waits, in 50 ms.
    func survives() throws -> Bool {
        usleep(50_000)
        var status: Int32 = 0
        return waitpid(pid, &status, WNOHANG) == 0
    }

    /// How the worker ended.
    func ending() throws -> ProcessChange { try FakeBroker.ending(of: pid) }

    static func ending(of pid: pid_t) throws -> ProcessChange {
        var info = siginfo_t()
        try call("waitid") { waitid(P_PID, id_t(pid), &info, WEXITED | WNOWAIT) }
        let status = info._sifields._sigchld.si_status
        return Int(info.si_code) == Int(CLD_EXITED) ? .exited(status) : .killed(signal: status)
    }

    /// A line of /proc/PID/task/TID/status; of the main thread when `thread` is nil.
    func status(_ field: String, thread: String? = nil) throws -> String? {
        String(decoding: try readFile("/proc/\(pid)/task/\(thread ?? "\(pid)")/status"), as: UTF8.self).split(
            separator: "\n"
        )
        .first { $0.hasPrefix(field + ":") }
        .map { $0.dropFirst(field.count + 1).split(separator: "\t").joined(separator: " ") }
    }
}

import CLauncher
import CLibcap
import Glibc
import SystemCalls
import WorkerProtocol

/// The broker's view of one worker: its pidfd, the broker's end of the control socket, and the expected message.
final class WorkerProcess: Worker {
    let uid: UInt32
    let pid: Int32
    /// Field 22 of /proc/PID/stat: together with the pid it identifies the process for good.
    let startTime: UInt64
    private(set) var end: ProcessChange?
    private(set) var violation: String?
    let workerEndInode: UInt64?

    private let process: ProcessHandle
    private var control: FileDescriptor?
    private var report: FileDescriptor?
    private let loop: EventLoop
    private var watches: [EventLoop.Watch] = []
    private var handler: ((WorkerEvent) -> Void)?
    private var waitsForStop = false
    /// The message that the worker may send next.
    private var expected: WorkerExpectation = .nothing

    /// Milliseconds between polls of a worker that cannot be watched.
    private static let look = 10

    /// Starts a worker. The event loop calls `handler` with all events, including failures after clone: then the
    /// process exists, and its uid is in use until `.ended`. So only failures before clone are thrown.
    init(_ launch: WorkerLaunch, loop: EventLoop, handler: @escaping (WorkerEvent) -> Void) throws(SystemError) {
        let pair = try makeMessagePair()
        workerEndInode = UInt64(try pair.second.status().st_ino)
        var child = ubd_child()
        let result = WorkerProcess.start(launch, control: pair.second.raw, &child)
        guard result == 0 else { throw SystemError("clone", -result) }
        process = ProcessHandle(pid: child.pid, owning: FileDescriptor(owning: child.pidfd))
        report = FileDescriptor(owning: child.report)
        control = consume pair.first
        pid = child.pid
        uid = launch.uid
        let startTime = try? WorkerProcess.startTime(of: child.pid)
        self.startTime = startTime ?? 0
        self.loop = loop
        self.handler = handler
        do throws(SystemError) {
            // Without the start time a later broker could not identify the process.
            if startTime == nil { throw SystemError("read /proc/\(pid)/stat", ESRCH) }
            try watchAll()
        } catch {
            giveUp(error)
        }
    }

    /// Kills a worker that was started and cannot be kept, and polls for its end without the event loop's watches.
    private func giveUp(_ error: SystemError) {
        for watch in watches { loop.unwatch(watch) }
        watches = []
        kill()
        loop.later { [self] in
            handler?(.unusable(error))
            lookForEnd()
        }
    }

    private func lookForEnd() {
        ended()
        if end == nil { loop.after(milliseconds: WorkerProcess.look) { [self] in lookForEnd() } }
    }

    /// Takes over a worker that an earlier broker started. It has no more messages to send.
    ///
    /// - Throws: ESRCH when it has ended. Every other error says nothing about it.
    init(adopting pid: Int32, uid: UInt32, startTime: UInt64, loop: EventLoop) throws(SystemError) {
        process = try ProcessHandle(pid: pid)
        // The pidfd is open, so the pid cannot be reused between this check and its use.
        guard try WorkerProcess.startTime(of: pid) == startTime else {
            throw SystemError("adopt process \(pid)", ESRCH)
        }
        self.pid = pid
        self.uid = uid
        self.startTime = startTime
        self.loop = loop
        workerEndInode = nil
        let file = process.file.raw
        watches.append(try loop.watch(file, .readable) { [unowned self] _ in self.adoptedEnded() })
    }

    /// Takes back the descriptors that every worker keeps for this purpose: the broker's end of its control socket, and
    /// the parking end, which is returned. They must have the recorded inodes: a sealed worker cannot change its
    /// descriptors, but the broker does not rely on that.
    func reclaim(_ sockets: DeviceRecord.Sockets) throws(SystemError) -> FileDescriptor {
        control = try take(WorkerDescriptor.brokerEnd, inode: sockets.control)
        return try take(WorkerDescriptor.parking, inode: sockets.parking)
    }

    func reclaimStatistics() throws(SystemError) -> FileDescriptor {
        let number = WorkerDescriptor.statistics
        guard linkTarget("/proc/\(pid)/fd/\(number)")?.hasPrefix("/memfd:ubd-statistics") == true else {
            throw SystemError("descriptor \(number) of worker \(pid) is not its statistics", EBADF)
        }
        return try process.duplicate(descriptor: number)
    }

    private func take(_ number: Int32, inode: UInt64) throws(SystemError) -> FileDescriptor {
        // Checks the link first: a socket can be duplicated and closed without blocking; other files cannot.
        let link = linkTarget("/proc/\(pid)/fd/\(number)")
        guard link == "socket:[\(inode)]" else {
            throw SystemError("descriptor \(number) of worker \(pid) is \(link ?? "missing")", EBADF)
        }
        let file = try process.duplicate(descriptor: number)
        guard try file.status().st_ino == ino_t(inode) else {
            throw SystemError("descriptor \(number) of worker \(pid)", EBADF)
        }
        return file
    }

    func listen() throws(SystemError) {
        guard let control = control?.raw else { return }
        watches.append(try loop.watch(control, .readable) { [unowned self] _ in self.readMessage() })
    }

    var controlInode: UInt64? { (try? control?.status())?.map { UInt64($0.st_ino) } ?? nil }

    /// In clock ticks since boot.
    ///
    /// - Throws: ESRCH when there is no such process.
    static func startTime(of pid: Int32) throws(SystemError) -> UInt64 {
        let path = "/proc/\(pid)/stat"
        let bytes: [UInt8]
        do { bytes = try readFile(path) } catch {
            throw error.saysProcessIsGone ? SystemError(error.operation, ESRCH) : error
        }
        guard let time = ProcessStat(bytes)?.startTime else { throw SystemError("read \(path)", EBADMSG) }
        return time
    }

    func setHandler(_ handler: @escaping (WorkerEvent) -> Void) {
        self.handler = handler
    }

    func expect(_ expectation: WorkerExpectation) {
        expected = expectation
    }

    func send(_ message: LaunchMessage, parking: Int32, statistics: Int32, bundle: Int32) throws(SystemError) {
        guard let end = control?.raw else { throw SystemError("send to worker", EPIPE) }
        try SystemCalls.send(end, message.encoded(), files: [parking, end, statistics, bundle], wait: false)
    }

    func send(_ message: ServeMessage) throws(SystemError) {
        guard let end = control?.raw else { throw SystemError("send to worker", EPIPE) }
        try SystemCalls.send(end, message.encoded(), wait: false)
    }

    func stop() throws(SystemError) {
        waitsForStop = true
        try process.send(SIGSTOP)
    }

    func resume() throws(SystemError) {
        try process.send(SIGCONT)
    }

    func kill() {
        // ESRCH: it is dead already, and `.ended` follows.
        try? process.send(SIGKILL)
    }

    var isAlive: Bool {
        if end != nil { return false }
        var poll = pollfd(fd: process.file.raw, events: Int16(POLLIN), revents: 0)
        return Glibc.poll(&poll, 1, 0) == 0
    }

    func checkStopped() {
        guard waitsForStop, case .stopped? = try? process.pollStop() else { return }
        waitsForStop = false
        handler?(.stopped)
    }

    func forget(undertaker: Undertaker, owner: UInt32) {
        for watch in watches { loop.unwatch(watch) }
        watches = []
        handler = nil
        if let control = control.take() { undertaker.letGo(control, owner: owner) }
    }

    private static func start(_ launch: WorkerLaunch, control: Int32, _ child: inout ubd_child) -> Int32 {
        let arguments = CStrings(["ubd-worker"])
        // SWIFT_ROOT: without /proc the runtime cannot find its own path. SWIFT_BACKTRACE: a crash must not start the
        // backtracer (docs/kernel-facts.md#crash-programs).
        let environment = CStrings(["SWIFT_ROOT=/", "SWIFT_BACKTRACE=enable=no"])
        let texts = CStrings([launch.device, "\(launch.oomScore)"])
        let nothing = cap_init()
        defer { cap_free(UnsafeMutableRawPointer(nothing)) }
        return launch.processors.withUnsafeBufferPointer { processors in
            var description = ubd_launch(
                worker_binary: launch.binary, control: control, device: texts.pointer[0], uid: launch.uid,
                gid: launch.gid,
                processes: launch.processes, mapped_bytes: launch.mappedBytes, open_files: launch.openFiles,
                oom_score: texts.pointer[1], no_capabilities: UnsafeMutableRawPointer(nothing),
                processors: processors.baseAddress, processor_words: processors.count,
                group: launch.group ?? -1,
                argv: arguments.pointer, envp: environment.pointer)
            // `description` has pointers into all three.
            return withExtendedLifetime((arguments, environment, texts)) { ubd_launch(&description, &child) }
        }
    }

    private func watchAll() throws(SystemError) {
        #if UBD_TEST_FAILURES
            if let number = TestFailure.happen("watch") { throw SystemError("watch", number) }
        #endif
        let pidfd = process.file.raw
        watches.append(try loop.watch(pidfd, .readable) { [unowned self] _ in self.ended() })
        if let report = report?.raw {
            watches.append(try loop.watch(report, .readable) { [unowned self] _ in self.readReport() })
        }
        if let control = control?.raw {
            watches.append(try loop.watch(control, .readable) { [unowned self] _ in self.readMessage() })
        }
    }

    private func readReport() {
        guard let file = report?.raw else { return }
        var result = ubd_launch_report()
        let size = MemoryLayout<ubd_launch_report>.size
        var count = 0
        // The first report, UBD_LAUNCH_BEGUN, is the one that ubd_launch waited for.
        repeat { count = read(file, &result, size) } while count == size && result.step == 0
        if count == -1, errno == EAGAIN || errno == EINTR { return }
        endWatch(of: file)
        report = nil
        if count == size {
            handler?(.launchFailed(step: result.step, errno: result.error))
        } else {
            handler?(.running)
        }
    }

    private func readMessage() {
        guard let end = control?.raw else { return }
        var buffer = [UInt8](repeating: 0, count: longestWorkerMessage)
        let received = buffer.withUnsafeMutableBytes { raw in
            (try? receiveWithoutFiles(end, into: raw, isShared: true)) ?? .closed
        }
        switch received {
        case .wouldBlock: return
        case .closed:
            // It closed its end; the pidfd reports the rest.
            endWatch(of: end)
        case .filesAttached: violate("files in a message, or tampered with the check for them", end)
        case .tooLong: violate("a message that is too long", end)
        case .bytes(let count): accept(Array(buffer[0..<count]), end)
        }
    }

    private func accept(_ bytes: [UInt8], _ end: Int32) {
        let event = expected.take(bytes)
        if case .violation(let text) = event { return violate(text, end) }
        handler?(event)
    }

    private func violate(_ text: String, _ end: Int32) {
        violation = text
        endWatch(of: end)
        handler?(.violation(text))
    }

    private func ended() {
        guard end == nil else { return }
        let change: ProcessChange
        do throws(SystemError) {
            guard let reported = try process.poll() else { return }
            change = reported
        } catch {
            // It is dead all the same, and a pidfd that stays readable must not be watched forever.
            change = .gone
        }
        end = change
        endWatch(of: process.file.raw)
        // Its last report and message are still in the pipe and the socket, and explain the death.
        readReport()
        if control != nil, expected != .nothing { readMessage() }
        handler?(.ended(change))
    }

    private func adoptedEnded() {
        guard end == nil else { return }
        // Not our child: the kernel reports only that it ended.
        end = .gone
        endWatch(of: process.file.raw)
        handler?(.ended(.gone))
    }

    private func endWatch(of fd: Int32) {
        guard let index = watches.firstIndex(where: { $0.fd == fd }) else { return }
        loop.unwatch(watches.remove(at: index))
    }
}

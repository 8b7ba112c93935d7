#if UBD_TEST_FAILURES
    import CShims
    import Glibc
    import KernelABI
    import SystemCalls
    import WorkerProtocol

    /// For the lab only, compiled in by `make failing-broker`: lets control commands and messages between broker and
    /// worker fail. A file with one line names the failure; the first step that it names consumes it:
    ///
    ///     STEP error NUMBER     the step fails with this errno, unexecuted; for a worker's message, the worker is killed
    ///     STEP lie NUMBER       the kernel executes it, and the broker gets this errno
    ///     STEP stop             the broker stops itself (SIGSTOP) before the step, and executes it after SIGCONT
    ///
    /// STEP is a name of UblkControlOperation, or watch, launch, serve, stop, resume, geometry or sealed.
    struct TestFailure {
        enum Kind {
            case error(Int32)
            case lie(Int32)
            case stop
        }

        private static let path = "/run/lab/failing-broker"

        /// The failure at this step, once; nil nearly always.
        static func take(_ step: String) -> Kind? {
            guard let file = fopen(path, "r") else { return nil }
            var line = [CChar](repeating: 0, count: 100)
            let read = fgets(&line, 100, file) != nil
            fclose(file)
            let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            let words = text.split { $0 == " " || $0 == "\n" }
            guard read, words.count >= 2, words[0] == step else { return nil }
            unlink(path)
            let number = words.count > 2 ? Int32(words[2]) ?? EIO : EIO
            return words[1] == "stop" ? .stop : words[1] == "lie" ? .lie(number) : .error(number)
        }

        /// The broker's filter does not allow raise(3).
        static func stopItself() {
            let pidfd = pidfd_open(getpid(), 0)
            _ = pidfd_send_signal(pidfd, SIGSTOP, nil, 0)
            close(pidfd)
        }

        /// Stops the process, or returns the errno with which the step fails.
        static func happen(_ step: String) -> Int32? {
            switch take(step) {
            case nil: return nil
            case .error(let number), .lie(let number): return number
            case .stop:
                TestFailure.stopItself()
                return nil
            }
        }
    }

    final class FailingControlDevice: ControlDevice {
        private let inner: any ControlDevice
        private let loop: EventLoop
        init(_ inner: any ControlDevice, loop: EventLoop) { (self.inner, self.loop) = (inner, loop) }

        var features: UblkFeatures { inner.features }

        func submit(_ request: ControlRequest, _ completion: @escaping (ControlAnswer) -> Void) {
            switch TestFailure.take("\(request.operation)") {
            case nil: return inner.submit(request, completion)
            case .stop:
                TestFailure.stopItself()
                inner.submit(request, completion)
            case .error(let number): loop.later { completion(.result(-number, request.buffer)) }
            case .lie(let number):
                inner.submit(request) { _ in completion(.result(-number, request.buffer)) }
            }
        }
    }

    final class FailingWorker: Worker {
        private let inner: any Worker
        private init(_ inner: any Worker) { self.inner = inner }

        static func start(
            _ launch: WorkerLaunch, loop: EventLoop, handler: @escaping (WorkerEvent) -> Void
        ) throws(SystemError) -> any Worker {
            let worker = FailingWorker(try WorkerProcess(launch, loop: loop) { _ in })
            worker.setHandler(handler)
            return worker
        }

        var uid: UInt32 { inner.uid }
        var pid: Int32 { inner.pid }
        var startTime: UInt64 { inner.startTime }
        var isAlive: Bool { inner.isAlive }
        var end: ProcessChange? { inner.end }
        var violation: String? { inner.violation }
        var controlInode: UInt64? { inner.controlInode }
        var workerEndInode: UInt64? { inner.workerEndInode }

        func reclaim(_ sockets: DeviceRecord.Sockets) throws(SystemError) -> FileDescriptor {
            try inner.reclaim(sockets)
        }
        func reclaimStatistics() throws(SystemError) -> FileDescriptor { try inner.reclaimStatistics() }
        func listen() throws(SystemError) { try inner.listen() }
        func setHandler(_ handler: @escaping (WorkerEvent) -> Void) { inner.setHandler(hears(handler)) }
        func expect(_ expectation: WorkerExpectation) { inner.expect(expectation) }

        /// A handler that drops a message which is to fail; the worker is killed instead.
        private func hears(_ handler: @escaping (WorkerEvent) -> Void) -> (WorkerEvent) -> Void {
            { [weak inner] event in
                var step: String?
                if case .message(.geometry) = event { step = "geometry" }
                if case .message(.sealed) = event { step = "sealed" }
                if let step, TestFailure.happen(step) != nil { return inner?.kill() ?? () }
                handler(event)
            }
        }

        private func fail(_ step: String) throws(SystemError) {
            if let number = TestFailure.happen(step) { throw SystemError(step, number) }
        }

        func send(_ message: LaunchMessage, parking: Int32, statistics: Int32, bundle: Int32) throws(SystemError) {
            try fail("launch")
            try inner.send(message, parking: parking, statistics: statistics, bundle: bundle)
        }

        func send(_ message: ServeMessage) throws(SystemError) {
            try fail("serve")
            try inner.send(message)
        }

        func stop() throws(SystemError) {
            try fail("stop")
            try inner.stop()
        }

        func resume() throws(SystemError) {
            try fail("resume")
            try inner.resume()
        }

        func kill() { inner.kill() }
        func checkStopped() { inner.checkStopped() }
        func forget(undertaker: Undertaker, owner: UInt32) { inner.forget(undertaker: undertaker, owner: owner) }
    }
#endif

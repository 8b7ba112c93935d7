import Glibc
import KernelABI
import SystemCalls

/// Sends control commands as URING_CMDs on /dev/ublk-control, so that the broker's loop never blocks in one. The ring
/// is sealed: it allows only these commands on this file, and their cancellation.
final class ControlRing: ControlDevice {
    static let path = "/dev/ublk-control"
    /// Half of the entries may hold commands that hang, for example one for each stuck device.
    private static let entries: UInt32 = 1024

    private struct Pending {
        /// Lives until the kernel has completed the command, which may be long after the deadline.
        let memory: UnsafeMutableRawBufferPointer
        var completion: ((ControlAnswer) -> Void)?
        var timer: EventLoop.Timer?
    }

    private let loop: EventLoop
    private let encoding: Encoding
    private var ring: CommandRing
    private var pending: [UInt64: Pending] = [:]
    private var waiting: [(ControlRequest, (ControlAnswer) -> Void)] = []
    private var nextTicket: UInt64 = 1
    private(set) var features: UblkFeatures = []

    /// The numbering of commands: as ioctls, or plain for drivers before Linux 6.4.
    enum Encoding {
        case ioctl
        case legacy
    }

    /// Opens the control device. Errors: ENOENT when the module is not loaded, EPERM when io_uring is forbidden.
    init(loop: EventLoop, encoding: Encoding) throws(SystemError) {
        self.loop = loop
        self.encoding = encoding
        let file = try FileDescriptor.open(ControlRing.path, O_RDWR)
        ring = try CommandRing(entries: ControlRing.entries, file: file.raw)
        features = try askFeatures()
        _ = try loop.watch(self.ring.descriptor, .readable) { [unowned self] _ in self.handleCompletions() }
    }

    func submit(_ request: ControlRequest, _ completion: @escaping (ControlAnswer) -> Void) {
        guard let code = commandCode(request.operation) else {
            return loop.later { completion(.result(-EOPNOTSUPP, [])) }
        }
        // Commands beyond that wait for their turn: a refusal would look like the kernel's.
        guard pending.count < Int(ControlRing.entries) / 2 else {
            return waiting.append((request, completion))
        }
        let ticket = start(request, code)
        pending[ticket]?.completion = completion
        pending[ticket]?.timer = loop.after(milliseconds: request.deadline) { [unowned self] in
            giveUp(ticket, request)
        }
        enter()
    }

    private func submitWaiting() {
        while !waiting.isEmpty, pending.count < Int(ControlRing.entries) / 2 {
            let (request, completion) = waiting.removeFirst()
            submit(request, completion)
        }
    }

    private func commandCode(_ operation: UblkControlOperation) -> UInt32? {
        switch encoding {
        case .ioctl: operation.ioctlEncoded
        case .legacy: operation.legacy
        }
    }

    /// Queues the command and returns its ticket.
    private func start(_ request: ControlRequest, _ code: UInt32) -> UInt64 {
        let ticket = nextTicket
        nextTicket += 1
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: max(request.buffer.count, 8), alignment: 8)
        memory.copyBytes(from: request.buffer)
        pending[ticket] = Pending(memory: memory)
        var command = UblkControlCommand()
        command.deviceID = request.device
        command.queueID = request.queue
        command.inlineData = request.data
        if !request.buffer.isEmpty {
            command.length = UInt16(request.buffer.count)
            command.address = UInt64(UInt(bitPattern: memory.baseAddress))
        }
        // There is room: at most half of the entries are in use, and each command is cancelled at most once.
        if !ring.push(code: code, command, userData: ticket) {
            loop.later { [unowned self] in finish((userData: ticket, result: -EBUSY)) }
        }
        return ticket
    }

    /// After the deadline: asks the kernel to cancel the command; its memory stays until the kernel has completed it.
    /// For most commands the caller goes on. For commands that make, start or remove a device it must get the kernel's
    /// answer, however late: killing a worker during START_DEV can crash an old kernel, and a number that is deleted
    /// twice may already belong to another server.
    private func giveUp(_ ticket: UInt64, _ request: ControlRequest) {
        guard let completion = pending[ticket]?.completion else { return }
        Log.warning("control-late", ("command", "\(request.operation)"), ("device", "\(request.device)"))
        if !ring.pushCancel(of: ticket) {
            Log.error(
                "control-ring", ("why", "full: a late command can not be cancelled"), ("device", "\(request.device)"))
        }
        enter()
        if request.operation.mustBeHeardOut { return }
        pending[ticket]?.completion = nil
        completion(.timedOut)
    }

    private func enter() {
        let result = ring.submit()
        // On EBUSY and EAGAIN the entries stay queued for the next call.
        if result < 0, result != -EBUSY, result != -EAGAIN, result != -EINTR {
            Log.error("control-ring", ("errno", SystemError.name(-result)))
        }
        if result < 0 { loop.after(milliseconds: 10) { [unowned self] in self.enter() } }
    }

    private func handleCompletions() {
        // Take all completions first: a handler may submit a command that completes at once.
        var done: [(userData: UInt64, result: Int32)] = []
        while let entry = ring.take() { done.append(entry) }
        for entry in done { finish(entry) }
        submitWaiting()
    }

    private func finish(_ entry: (userData: UInt64, result: Int32)) {
        // Ticket 0 is the completion of a cancellation.
        guard let command = pending.removeValue(forKey: entry.userData) else { return }
        loop.cancel(command.timer)
        let bytes = Array(command.memory)
        command.memory.deallocate()
        command.completion?(.result(entry.result, bytes))
    }

    /// Called once, before all other commands; the command does not wait for any device.
    private func askFeatures() throws(SystemError) -> UblkFeatures {
        guard let code = commandCode(.getFeatures) else { return [] }
        let request = ControlRequest(
            operation: .getFeatures, device: .max, buffer: [UInt8](repeating: 0, count: 8))
        let ticket = start(request, code)
        while true {
            let result = ring.submit(waitingFor: 1)
            if result < 0, result != -EINTR { throw SystemError("io_uring_enter", -result) }
            guard let entry = ring.take() else { continue }
            guard let command = pending.removeValue(forKey: ticket) else { return [] }
            defer { command.memory.deallocate() }
            // Kernels before 6.5 lack the command.
            return entry.result < 0 ? [] : UblkFeatures(rawValue: command.memory.load(as: UInt64.self))
        }
    }
}

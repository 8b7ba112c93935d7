import BrokerInterface
import Glibc
import KernelABI
import SystemCalls

/// The kernel's answer to one of the driver's verbs.
struct DriverAnswer<Content> {
    /// What the answer means for this verb.
    let verdict: ControlVerdict
    /// Positive; 0 on success, ETIMEDOUT after the deadline.
    let errno: Int32
    /// The decoded answer; nil unless the verdict is `done`.
    let content: Content?

    init(_ answer: ControlAnswer, to operation: UblkControlOperation, _ decode: ([UInt8]) -> Content?) {
        let content: Content? =
            switch answer {
            case .result(let result, let bytes) where result >= 0: decode(bytes)
            case .result, .timedOut: nil
            }
        let verdict = answer.verdict(on: operation)
        self.content = content
        // An answer that cannot be decoded proves nothing.
        (self.verdict, errno) = verdict == .done && content == nil ? (.unknown, EINVAL) : (verdict, answer.errno)
    }
}

extension DriverAnswer<Void> {
    var isDone: Bool { verdict == .done }
}

/// The kernel's ublk driver, in verbs. All control commands pass through here, and only this type decodes their
/// buffers. It opens the control device on first use, because the broker may start before the module is loaded.
///
/// Each verb calls its completion once. Without a driver there are no devices, and every verb answers ENODEV at once.
final class Driver {
    typealias Completion<Content> = (DriverAnswer<Content>) -> Void

    private let open: () throws(SystemError) -> any ControlDevice
    /// nil until `ready` has succeeded.
    private var opened: (any ControlDevice)?

    init(open: @escaping () throws(SystemError) -> any ControlDevice) {
        self.open = open
    }

    var isOpen: Bool { opened != nil }

    /// The driver's features (GET_FEATURES); empty while it is not open.
    var features: UblkFeatures { opened?.features ?? [] }

    /// Opens the driver if necessary. Throws the reason and a remedy.
    func ready() throws(InterfaceError) {
        if isOpen { return }
        do { opened = try open() } catch { throw Driver.explain(error) }
    }

    // MARK: Queries

    /// GET_DEV_INFO: the kernel's record of a device.
    func info(of id: UInt32, _ completion: @escaping Completion<UblkDeviceInfo>) {
        let buffer = [UInt8](repeating: 0, count: MemoryLayout<UblkDeviceInfo>.size)
        send(
            ControlRequest(operation: .getDeviceInfo, device: id, buffer: buffer),
            UblkDeviceInfo.init(decoding:), completion)
    }

    /// GET_PARAMS: the disk's parameters, including its device numbers after START_DEV.
    func parameters(of id: UInt32, _ completion: @escaping Completion<UblkParameters>) {
        send(
            ControlRequest(operation: .getParameters, device: id, buffer: UblkParameters.emptyBuffer()),
            { UblkParameters(decoding: $0) }, completion)
    }

    /// GET_QUEUE_AFFINITY: the processors from which a queue gets its requests, as a bit mask. All queues' masks have
    /// the same length.
    func affinity(of id: UInt32, queue: UInt16, _ completion: @escaping Completion<[UInt64]>) {
        let request = ControlRequest(
            operation: .getQueueAffinity, device: id, queue: queue, data: UInt64(queue),
            buffer: [UInt8](repeating: 0, count: Driver.affinityBytes))
        send(request, Driver.words, completion)
    }

    // MARK: The life of a device

    /// ADD_DEV. The answer holds the values that the kernel chose for `wanted`.
    func add(_ wanted: UblkDeviceInfo, _ completion: @escaping Completion<UblkDeviceInfo>) {
        let request = ControlRequest(
            operation: .addDevice, device: wanted.deviceID, buffer: withUnsafeBytes(of: wanted) { Array($0) })
        send(request, UblkDeviceInfo.init(decoding:), completion)
    }

    /// SET_PARAMS: describes the disk that START_DEV creates.
    func set(_ parameters: UblkParameters, of id: UInt32, _ completion: @escaping Completion<Void>) {
        command(ControlRequest(operation: .setParameters, device: id, buffer: parameters.encoded()), completion)
    }

    /// START_DEV. The worker `pid` must be stopped until the answer (docs/kernel-facts.md#start-race).
    func start(_ id: UInt32, worker pid: Int32, _ completion: @escaping Completion<Void>) {
        command(ControlRequest(operation: .startDevice, device: id, data: UInt64(pid)), completion)
    }

    /// UPDATE_SIZE: gives the disk another size, in bytes. The kernel checks nothing. The device must be live: without a
    /// disk some kernels crash (docs/kernel-facts.md#update-size).
    func resize(_ id: UInt32, bytes: UInt64, _ completion: @escaping Completion<Void>) {
        // set_capacity counts in sectors of 512 bytes, whatever the disk's blocks are.
        command(ControlRequest(operation: .updateSize, device: id, data: bytes >> 9), completion)
    }

    /// QUIESCE_DEV: the worker gets no more requests. `patience`: milliseconds that the kernel waits for an idle
    /// request of each queue.
    func quiesce(_ id: UInt32, patience: Int, _ completion: @escaping Completion<Void>) {
        let request = ControlRequest(
            operation: .quiesceDevice, device: id, data: UInt64(patience), deadline: patience + 5_000)
        command(request, completion)
    }

    /// START_USER_RECOVERY. docs/kernel-facts.md#half-ready says when it may be sent again.
    func startRecovery(_ id: UInt32, _ completion: @escaping Completion<Void>) {
        command(ControlRequest(operation: .startUserRecovery, device: id), completion)
    }

    /// END_USER_RECOVERY. The worker `pid` must be stopped until the answer, as for `start`.
    func endRecovery(_ id: UInt32, worker pid: Int32, _ completion: @escaping Completion<Void>) {
        command(ControlRequest(operation: .endUserRecovery, device: id, data: UInt64(pid)), completion)
    }

    /// STOP_DEV; with `onlyUnused` TRY_STOP_DEV, which answers `again` while somebody has the disk open.
    func stop(_ id: UInt32, onlyUnused: Bool = false, _ completion: @escaping Completion<Void>) {
        command(ControlRequest(operation: onlyUnused ? .tryStopDevice : .stopDevice, device: id), completion)
    }

    /// DEL_DEV_ASYNC; with `waiting` DEL_DEV, which waits until nobody has the disk open.
    func delete(_ id: UInt32, waiting: Bool, _ completion: @escaping Completion<Void>) {
        command(ControlRequest(operation: waiting ? .deleteDevice : .deleteDeviceAsync, device: id), completion)
    }

    // MARK: Sending

    private func command(_ request: ControlRequest, _ completion: @escaping Completion<Void>) {
        send(request, { _ in () }, completion)
    }

    private func send<Content>(
        _ request: ControlRequest, _ decode: @escaping ([UInt8]) -> Content?,
        _ completion: @escaping Completion<Content>
    ) {
        guard let opened else {
            return completion(DriverAnswer(.result(-ENODEV, []), to: request.operation, decode))
        }
        opened.submit(request) { answer in completion(DriverAnswer(answer, to: request.operation, decode)) }
    }

    /// Room for 8192 processors, since the kernel requires room for every possible one.
    private static let affinityBytes = 1024

    /// The mask without trailing words for processors that this host cannot have.
    private static func words(_ bytes: [UInt8]) -> [UInt64] {
        let all = bytes.withUnsafeBytes { raw in
            (0..<raw.count / 8).map { raw.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self) }
        }
        return Array(all.prefix(max(1, (Int(sysconf(Int32(_SC_NPROCESSORS_CONF))) + 63) / 64)))
    }

    static func explain(_ error: SystemError) -> InterfaceError {
        switch error.errno {
        case ENOENT, ENXIO, ENODEV:
            .kernelUnsupported(
                message: "the kernel has no ublk driver loaded (\(ControlRing.path) is missing)",
                remedy: "modprobe ublk_drv, as root", feature: "ublk_drv")
        case EPERM where error.operation.hasPrefix("io_uring"), EPERM where error.operation == "io_uring_setup":
            .kernelUnsupported(
                message: "io_uring is switched off on this host",
                remedy: "sysctl kernel.io_uring_disabled=0 (or 1, with kernel.io_uring_group)", feature: "io_uring")
        default:
            .failed(
                message: "the ublk driver can't be used: \(error)", remedy: "see 'ubd doctor'", step: "open",
                errno: Int64(error.errno))
        }
    }
}

extension UblkDeviceInfo {
    /// The answer of ADD_DEV and GET_DEV_INFO; nil when it is too short.
    fileprivate init?(decoding bytes: [UInt8]) {
        guard bytes.count >= MemoryLayout<UblkDeviceInfo>.size else { return nil }
        self = bytes.withUnsafeBytes { $0.loadUnaligned(as: UblkDeviceInfo.self) }
    }
}

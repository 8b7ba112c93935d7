import Glibc
import KernelABI
import SystemCalls

@testable import ubd_broker

/// A kernel that keeps ublk devices in a dictionary and their nodes in a folder, and fails where a test says so.
final class FakeKernel: ControlDevice {
    var features: UblkFeatures = []
    /// Features that ADD_DEV drops silently.
    var unknownFeatures: UblkFeatures = []
    /// Commands that fail, with their errno.
    var failures: [UblkControlOperation: Int32] = [:]
    /// Run just before a command is answered.
    var beforeAnswer: [UblkControlOperation: () -> Void] = [:]
    /// Commands that get no answer before this holds.
    var hangsUntil: [UblkControlOperation: () -> Bool] = [:]
    /// The answers of GET_QUEUE_AFFINITY by queue, one word of CPUs each; without them the command fails.
    var affinity: [[UInt64]] = []
    private(set) var log: [String] = []
    private(set) var devices: [UInt32: UblkDeviceInfo] = [:]
    /// What UPDATE_SIZE said last, in sectors of 512 bytes.
    private(set) var sectors: [UInt32: UInt64] = [:]

    private let loop: EventLoop
    private let folder: String

    /// Another file has the name of a device's node; the kernel leaves it alone.
    var leavesForeignNode = false

    init(loop: EventLoop, nodes folder: String) {
        self.loop = loop
        self.folder = folder
    }

    /// A device of another ublk server.
    func addForeignDevice(_ id: UInt32) {
        var info = UblkDeviceInfo()
        info.deviceID = id
        devices[id] = info
    }

    /// A device as an earlier broker left it.
    func addDevice(_ id: UInt32, generation: UInt64, state: UblkDeviceState, pid: Int32) {
        var info = UblkDeviceInfo()
        info.deviceID = id
        info.serverFlags = generation
        info.state = state.rawValue
        info.serverPID = pid
        devices[id] = info
    }

    /// A state that no version of the driver has yet.
    static let unknownState: UInt16 = 9

    func state(of id: UInt32) -> UInt16? { devices[id]?.state }

    func becomeUnknown(_ id: UInt32) { devices[id]?.state = FakeKernel.unknownState }

    func forget(_ id: UInt32) { devices[id] = nil }

    /// The kernel notices that a device's server is gone.
    func quiesce(_ id: UInt32, as state: UblkDeviceState = .quiesced) { devices[id]?.state = state.rawValue }

    func submit(_ request: ControlRequest, _ completion: @escaping (ControlAnswer) -> Void) {
        log.append("\(request.operation) \(request.device)")
        loop.later { [self] in finish(request, completion) }
    }

    private func finish(_ request: ControlRequest, _ completion: @escaping (ControlAnswer) -> Void) {
        if let mayGoOn = hangsUntil[request.operation], !mayGoOn() {
            loop.after(milliseconds: 1) { [self] in finish(request, completion) }
        } else {
            beforeAnswer[request.operation]?()
            if let errno = failures[request.operation] { return completion(.result(-errno, request.buffer)) }
            completion(answer(request))
        }
    }

    private func answer(_ request: ControlRequest) -> ControlAnswer {
        let id = request.device
        switch request.operation {
        case .addDevice: return add(request)
        case .quiesceDevice: return .result(devices[id] == nil ? -ENODEV : 0, [])
        case .updateSize:
            sectors[id] = request.data
            return .result(devices[id] == nil ? -ENODEV : 0, [])
        case .setParameters: return .result(0, request.buffer)
        case .startDevice:
            mknod("\(folder)/ublkb\(id)", (leavesForeignNode ? S_IFREG : S_IFBLK) | 0o600, makeDevice(id))
            devices[id]?.state = UblkDeviceState.live.rawValue
            devices[id]?.serverPID = Int32(request.data)
            return .result(0, [])
        case .startUserRecovery:
            guard let state = devices[id]?.state, [.quiesced, .failIO].contains(UblkDeviceState(rawValue: state)) else {
                return .result(-EBUSY, [])
            }
            return .result(0, [])
        case .endUserRecovery:
            devices[id]?.state = UblkDeviceState.live.rawValue
            devices[id]?.serverPID = Int32(request.data)
            return .result(0, [])
        case .getParameters:
            var bytes = UblkParameters.emptyBuffer()
            bytes.withUnsafeMutableBytes {
                $0.storeBytes(of: UInt32(1 << 2), toByteOffset: 4, as: UInt32.self)
                $0.storeBytes(of: UInt32(7), toByteOffset: 68, as: UInt32.self)
                $0.storeBytes(of: id, toByteOffset: 72, as: UInt32.self)
            }
            return .result(0, bytes)
        case .getDeviceInfo:
            guard let info = devices[id] else { return .result(-ENODEV, request.buffer) }
            return .result(0, withUnsafeBytes(of: info) { Array($0) })
        case .getQueueAffinity where Int(request.data) < affinity.count:
            var bytes = request.buffer
            bytes.withUnsafeMutableBytes {
                $0.storeBytes(of: affinity[Int(request.data)][0], toByteOffset: 0, as: UInt64.self)
            }
            return .result(0, bytes)
        case .stopDevice, .tryStopDevice:
            guard devices[id] != nil else { return .result(-ENODEV, []) }
            unlink("\(folder)/ublkb\(id)")
            return .result(0, [])
        case .deleteDevice, .deleteDeviceAsync:
            return .result(devices.removeValue(forKey: id) == nil ? -ENODEV : 0, [])
        default:
            return .result(-EOPNOTSUPP, request.buffer)
        }
    }

    private func add(_ request: ControlRequest) -> ControlAnswer {
        guard devices[request.device] == nil else { return .result(-EEXIST, request.buffer) }
        var info = request.buffer.withUnsafeBytes { $0.loadUnaligned(as: UblkDeviceInfo.self) }
        // As a kernel with two CPUs does.
        info.queues = min(info.queues, 2)
        info.flags = (info.flags & ~unknownFeatures.rawValue) | UblkFeatures.ioctlEncoding.rawValue
        devices[request.device] = info
        return .result(0, withUnsafeBytes(of: info) { Array($0) })
    }

    /// Device 7:id (the numbers are not used for any open).
    private func makeDevice(_ id: UInt32) -> dev_t { dev_t(7 << 8 | id) }
}

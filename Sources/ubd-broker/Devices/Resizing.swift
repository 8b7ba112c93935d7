import BrokerInterface
import KernelABI
import SystemCalls
import Targets
import WorkerProtocol

/// A request for another size, and what is allowed.
struct Resizing {
    /// Bytes; nil: up to the end of the file.
    let wanted: UInt64?
    let mayShrink: Bool
    /// Bytes: the most that the access policy gives whoever asks; nil: any.
    let most: UInt64?
    /// Whoever asks.
    let uid: UInt32

    /// Why this device keeps its size; nil when it can have another one.
    func refusal(_ device: ManagedDevice, _ features: UblkFeatures) -> InterfaceError? {
        let name = device.info.link ?? device.info.node
        guard features.contains(.updateSize) else {
            return .kernelUnsupported(
                message: "this kernel can not change the size of a device in use (\(name))",
                remedy: "boot Linux 6.16 or later, or delete the device and add it again", feature: "UPDATE_SIZE")
        }
        guard device.launch?.target.hasSize == true, !device.hasServer else {
            return .invalidOption(
                message: "a device of target \(device.info.target) has the size of its export",
                remedy: "delete it and add it again when the export has another size", option: "id",
                value: "\(device.id)")
        }
        if device.launch?.target.isInMemory == true {
            return .invalidOption(
                message: "\(name) is a memory disk, whose memory is sealed at its size",
                remedy: "add another of the new size, copy the data, and delete this one", option: "id",
                value: "\(device.id)")
        }
        if device.launch?.target.hasBlockMap == true {
            return .invalidOption(
                message: "\(name) has a layer and a map of its size, which keep that size",
                remedy: "add another device of the new size on the same file (--size)", option: "id",
                value: "\(device.id)")
        }
        if device.launch?.target.takesSecret == true, device.launch?.options.size != nil {
            return .invalidOption(
                message: "\(name) has the size that the header of its LUKS volume says",
                remedy: "delete it and add it again when the header says another size", option: "id",
                value: "\(device.id)")
        }
        if let wanted, wanted == 0 || wanted > TargetOption.largestSize {
            return .invalidOption(
                message: "sizeBytes can not be \(wanted)", remedy: "give 1 to \(TargetOption.largestSize) bytes",
                option: "sizeBytes", value: "\(wanted)")
        }
        if let wanted { return refusal(wanted, UInt64(device.info.blockSize)) }
        if device.launch?.target.inputs.isEmpty == true {
            return .invalidOption(
                message: "\(name) has no file whose size it could follow", remedy: "give a size", option: "sizeBytes",
                value: "")
        }
        guard device.info.partition == nil, device.launch?.options.size == nil else {
            return .invalidOption(
                message: "\(name) is a part of its file, and need not end where that ends", remedy: "give a size",
                option: "sizeBytes", value: "")
        }
        return nil
    }

    /// As of an add (DeviceOptions), where a size that is no whole number of blocks is refused, too. `block`: bytes.
    private func refusal(_ wanted: UInt64, _ block: UInt64) -> InterfaceError? {
        guard block > 0, !wanted.isMultiple(of: block) else { return nil }
        let less = wanted - wanted % block
        let choice = less == 0 ? "\(block)" : "\(less) or \(less + block)"
        return .invalidOption(
            message: "sizeBytes can not be \(wanted): it is not a multiple of the block size \(block)",
            remedy: "give \(choice); a number without K, M, G or T is bytes", option: "sizeBytes", value: "\(wanted)")
    }

    /// What the worker of the rehearsal gets. It claims the bytes, so that nobody else uses those that are new.
    func launch(_ launch: LaunchMessage, _ device: ManagedDevice) -> LaunchMessage {
        var launch = launch
        launch.options.size = wanted
        launch.flags.remove(.releasesBytes)
        if wanted ?? .max > device.info.sizeBytes { launch.flags.insert(.claimsBytes) }
        return launch
    }

    /// Why the device does not get the disk that the worker of the rehearsal found; nil when it does. The worker has claimed
    /// nothing yet.
    func refusal(_ geometry: Geometry, _ device: ManagedDevice, _ broker: Broker) -> InterfaceError? {
        if let difference = device.differenceBesideSize(geometry) {
            return StartErrors.workerBroke("it makes another disk: \(difference)")
        }
        guard geometry.file == device.file || device.file == .none else {
            return StartErrors.workerBroke("it reports another file")
        }
        guard geometry.size > 0, geometry.size <= TargetOption.largestSize, geometry.size == wanted ?? geometry.size
        else {
            return StartErrors.workerBroke("it announced a disk of \(geometry.size) bytes")
        }
        if geometry.size > device.info.sizeBytes { return refusalToGrow(device, geometry.size, broker) }
        guard geometry.size < device.info.sizeBytes, !mayShrink else { return nil }
        return .invalidOption(
            message: "the device has \(device.info.sizeBytes) bytes, and would have only \(geometry.size)",
            remedy: "what is behind them would be lost; if nothing is there, give --shrink", option: "shrink",
            value: "false")
    }

    private func refusalToGrow(_ device: ManagedDevice, _ bytes: UInt64, _ broker: Broker) -> InterfaceError? {
        if let partition = device.info.partition {
            return .invalidOption(
                message:
                    "\(device.info.link ?? device.info.node) is partition \(partition), and would not end where that ends",
                remedy: "make the partition larger in its table, then delete the device and add it again",
                option: "sizeBytes", value: "\(bytes)")
        }
        if let most, bytes > most {
            return .quotaReached(
                message: "the device would have \(bytes) bytes; the access policy allows \(most)",
                remedy: "give a smaller size, or ask the administrator for a larger max-size", limit: "max-size",
                value: Int64(clamping: most))
        }
        // A device that waits for its file has no open file, so no lock.
        let begin = UInt64(clamping: device.info.offset ?? 0)
        let added = begin + device.info.sizeBytes..<begin + bytes
        guard let other = broker.devicesWaiting(for: added, of: device.file).first else { return nil }
        let isTheirs = uid == 0 || uid == other.owner
        let holder = isTheirs ? other.info.link ?? other.info.node : "another user's device"
        return .busy(
            message: "bytes that the device would get are behind \(holder), which waits for its file",
            remedy: isTheirs
                ? "bring it: 'ubd recover -n \(other.id)'; or delete that device: 'ubd del -n \(other.id) --force'"
                : "give a smaller size, or ask the users who may write to the file",
            id: Int64(device.id), holder: holder)
    }

    /// The worker's refusal in the words of this request: there the size has another name, and no other option can be given.
    func explained(_ error: InterfaceError, _ device: ManagedDevice) -> InterfaceError {
        if case .invalidOption(_, _, "offset", _) = error {
            let offset = device.info.offset ?? 0
            let end = UInt64(clamping: offset) + device.info.sizeBytes
            return .badFile(
                message:
                    "\(device.info.file ?? "the file") ends before byte \(offset), where the device begins in it",
                remedy: "enlarge the file again: with 'truncate -s \(end) FILE' the device keeps its size", index: 0)
        }
        guard case .invalidOption(_, _, "size", _) = error, let wanted else { return error }
        return .invalidOption(
            message: "sizeBytes can not be \(wanted): the file ends before that",
            remedy: "enlarge the file first ('truncate -s SIZE FILE'), or give a smaller size", option: "sizeBytes",
            value: "\(wanted)")
    }

    /// Why a device that somebody uses does not become smaller; nil when nobody does.
    static func refusal(of device: ManagedDevice, _ holding: Holding) -> InterfaceError? {
        let holder: String
        switch holding {
        case .free: return nil
        case .held(let by): holder = by
        case .unknown(let why): holder = "\(BrokerAPI.holderUnknown): \(why)"
        }
        return .busy(
            message: "\(device.info.link ?? device.info.node) is in use, so it does not become smaller: \(holder)",
            remedy: "end that use first", id: Int64(device.id), holder: holder)
    }
}

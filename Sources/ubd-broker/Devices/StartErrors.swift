import BrokerInterface
import CLauncher
import Glibc
import KernelABI
import SystemCalls
import Targets
import WorkerProtocol

/// Why a device or a worker could not be started: what is wrong, with which value, and a remedy.
enum StartErrors {
    static let late = InterfaceError.failed(
        message: "the worker was not ready in time",
        remedy: "see whether the file answers at all, and the broker's log",
        step: "worker", errno: nil)

    /// An event that the operation's phase does not allow.
    static let outOfOrder = InterfaceError.failed(
        message: "the broker took its own steps out of order, and broke off",
        remedy: "try again; this is a fault of ubd: report it with 'operation-order' of the broker's log",
        step: "order", errno: nil)

    static let noFreeNumber = InterfaceError.quotaReached(
        message: "no device number is free", remedy: "delete a device first", limit: "ids",
        value: Int64(AddPlan.ids.upperBound))

    static func isInUse(_ id: UInt32) -> InterfaceError {
        .idInUse(
            message: "device number \(id) is in use", remedy: "choose another number, or leave -n out", id: Int64(id))
    }

    /// Two devices with one name would have one link.
    static func hasName(_ other: ManagedDevice, _ name: String) -> InterfaceError {
        .idInUse(
            message: "device \(other.id) of yours has the name '\(name)'",
            remedy: "give another name, or delete that device first", id: Int64(other.id))
    }

    /// The run folder has a file for this number that this broker does not understand.
    static func isKept(_ id: UInt32) -> InterfaceError {
        .idInUse(
            message:
                "device number \(id) is reserved: its record can not be read, and its device may serve",
            remedy: "choose another number, or leave -n out; the administrator finds what to do in the broker's log",
            id: Int64(id))
    }

    /// `isOfAccount`: another uid of the same user has the device (/etc/subuid). Then `--shared` does not help.
    static func isWaitedFor(by other: ManagedDevice, _ uid: UInt32, isOfAccount: Bool) -> InterfaceError {
        let isTheirs = uid == 0 || uid == other.owner
        let name = other.info.link ?? other.info.node
        return .busy(
            message: isTheirs
                ? "the file is behind \(name), which waits for it"
                : isOfAccount
                    ? "the file is behind a device of your uid \(other.owner), which waits for it"
                    : "the file is behind another user's device, which waits for it",
            remedy: isTheirs
                ? "bring it: 'ubd recover -n \(other.id)'; or delete that device: 'ubd del -n \(other.id) --force'"
                : isOfAccount
                    ? "recover or delete device \(other.id) as that uid"
                    : "ask the users who may write to the file; if nobody else may, add it with --shared",
            id: Int64(other.id), holder: isTheirs ? name : "a device")
    }

    static func broken(_ step: String, _ error: SystemError) -> InterfaceError {
        .failed(
            message: "could not \(step): \(SystemError.message(error.errno))",
            remedy: "see the broker's log and 'ubd doctor'", step: step, errno: Int64(error.errno))
    }

    /// A device without a record would be lost with the broker.
    static func notRecorded(_ error: SystemError, in folder: String) -> InterfaceError {
        .failed(
            message: "could not write the device's record into \(folder): \(SystemError.message(error.errno))",
            remedy: "let the administrator \(help(error.errno, folder)), then try again", step: "record",
            errno: Int64(error.errno))
    }

    private static func help(_ errno: Int32, _ folder: String) -> String {
        switch errno {
        case ENOSPC, EDQUOT: "make room there ('df -h \(folder)', 'df -i \(folder)')"
        // Restarting the broker does not help: it would know nothing of devices whose records are gone.
        case ENOENT: "make that folder again ('mkdir -m 700 -p \(folder)')"
        default: "make that folder writable for root"
        }
    }

    /// A step of the launcher failed.
    static func launcher(_ step: Int32, _ errno: Int32) -> InterfaceError {
        let what = StartFailure.launcherStep(step)
        var remedy = "see the broker's log and 'ubd doctor'"
        let files = [UBD_LAUNCH_OPEN_DEVICE, UBD_LAUNCH_FILES].map { Int32(bitPattern: $0.rawValue) }
        // The kernel creates nodes in devtmpfs; the host sets a container's device rules.
        if files.contains(step), errno == ENOENT {
            remedy = "the broker's /dev is not the host's: a container needs that ('-v /dev:/dev')"
        }
        if step == files[0], errno == EPERM {
            remedy = "the broker's container may not open it: allow it character devices (c *:* rwm)"
        }
        return .failed(
            message: "could not \(what): \(SystemError.message(errno))", remedy: remedy, step: what, errno: Int64(errno)
        )
    }

    /// `ENODEV`: another file has the name of the device's node, for example one that a program created there before.
    /// The kernel does not replace it, and neither does the broker.
    static func notPublished(_ id: UInt32, _ node: String, _ error: SystemError) -> InterfaceError {
        guard error.errno == ENODEV else { return broken("publish the device", error) }
        return .failed(
            message: "\(node) is something else than the device that the kernel calls so",
            remedy: "let the administrator remove it, or choose a number with -n whose name is free in /dev",
            step: "publish the device", errno: Int64(ENODEV))
    }

    static func kernelSaysNo(_ command: String, _ errno: Int32) -> InterfaceError {
        .failed(
            message: "the kernel refused \(command): \(SystemError.message(errno))",
            remedy: "see the kernel's log (dmesg) and 'ubd doctor'", step: command, errno: Int64(errno))
    }

    /// The driver lacks features that the device needs.
    static func lacking(_ missing: UblkFeatures, _ recovery: RecoveryMode, _ mode: DataMode) -> InterfaceError {
        .kernelUnsupported(
            message: "this kernel can not do --recovery \(recovery.rawValue) with mode \(mode.rawValue)",
            remedy: "use another --recovery or --mode, or a newer kernel",
            feature: missing.nameList.joined(separator: ","))
    }

    static func badKernel(_ bad: KnownBadKernel) -> InterfaceError {
        .kernelUnsupported(
            message: "this kernel's ublk is known to be bad: \(bad.fault) (\(bad.report))",
            remedy: "\(bad.remedy); or let the administrator start ubd-broker with --allow-bad-kernel", feature: "")
    }

    /// A broker without CAP_CHOWN leaves the node to udev.
    static func udevDoesNot(_ node: String) -> InterfaceError {
        .failed(
            message: "udev did not give \(node) to its owner within 8 s",
            remedy: "see that udev runs with 59-ubd.rules ('ubd doctor'), or let the broker have CAP_CHOWN, CAP_FOWNER",
            step: "udev", errno: Int64(EPERM))
    }

    static func workerBroke(_ what: String) -> InterfaceError {
        .failed(
            message: "the worker did not get ready: \(what)",
            remedy: "see the broker's log", step: "worker", errno: nil)
    }

    static func sandboxMissing(_ problem: String) -> InterfaceError {
        .failed(
            message: "the worker is not confined as it must be: \(problem)",
            remedy: "reinstall ubd-worker; the broker never starts a device without both walls", step: "sandbox",
            errno: nil)
    }

    /// The worker's own reason why it cannot serve.
    static func explain(_ failure: WorkerFailure, _ device: ManagedDevice, workerGID: UInt32) -> InterfaceError {
        let name = device.info.file ?? "the file"
        if let (message, remedy) = StartFailure.file(failure, name: name) {
            return .badFile(message: message, remedy: remedy, index: Int64(clamping: failure.detail))
        }
        if let (message, remedy) = StartFailure.socket(failure, name: name) {
            return .badFile(message: message, remedy: remedy, index: 0)
        }
        switch failure.step {
        case .offsetBeyondEnd:
            return option(
                "offset", device.launch?.options.offset ?? 0,
                "lies beyond the \(failure.detail) bytes of \(name)",
                "give a smaller offset")
        case .sizeBeyondEnd:
            return option(
                "size", device.launch?.options.size ?? 0,
                "is more than the \(failure.detail) bytes left in \(name)",
                "give a smaller size")
        // The kernel gave no lock, for example because memory was short: that says nothing of others.
        case .bytesInUse where failure.errno != 0:
            return .failed(
                message:
                    "whether bytes of \(name) that the device would get are in use can not be told: "
                    + SystemError.message(failure.errno),
                remedy: "try again", step: "\(failure.step)", errno: Int64(failure.errno))
        case .bytesInUse:
            return .busy(
                message:
                    "bytes of \(name) that the device would get are in use: another device or program has locked them",
                remedy: "see 'ubd list'; end that use, or give a smaller size", id: Int64(device.id),
                holder: "another device or program")
        case .memoryNotSealed:
            return .badFile(
                message:
                    "what came for the disk's memory is no writable memfd with exactly the seals SHRINK, GROW and SEAL",
                remedy: "let ubd make it ('ubd add -t \(device.info.target)'), or seal it so before you send it",
                index: 0)
        case .memorySize:
            return .badFile(
                message:
                    "a memfd of the disk has \(failure.detail) bytes, and the disk is to have \(device.launch?.options.size ?? 0)",
                remedy:
                    "let ubd make it ('ubd add -t \(device.info.target)'), or give it the size that the request needs",
                index: 0)
        case .baseWritable:
            return .badFile(
                message: "\(name) was opened for writing, and the base of an overlay is only read",
                remedy: "open it for reading", index: 2)
        case .layerUnusable:
            return .badFile(
                message: "the layer is no writable regular file of the size that the device needs: it has "
                    + "\(failure.detail) bytes", remedy: "let ubd make it ('ubd add -t overlay')", index: 0)
        case .smallerThanBlock:
            return .badFile(
                message: "\(name) is smaller than one block of \(failure.detail) bytes",
                remedy: "use a larger file or smaller blocks", index: 0)
        case .blockSizeTooSmall:
            return option(
                "block-size", UInt64(device.launch?.options.blockSize ?? 0), "is less than the blocks of \(name) have",
                "give at least \(failure.detail) bytes")
        case .secretUnusable:
            return .badFile(
                message: "the volume key of \(name) can not be used: it has \(failure.detail) bytes "
                    + "(\(SystemError.message(failure.errno)))",
                remedy: "give a volume with a key of 256 or 512 bits, whose halves differ", index: 1)
        case .secretDiffers:
            return .badFile(
                message: "this is not the volume key that device \(device.id) was made with (\(name))",
                remedy: "unlock the volume, or its header, that it was added with; the device waits on", index: 1)
        case .faultPlan where failure.detail == 0:
            let rules = device.launch?.options.faultRules ?? ""
            return .invalidOption(
                message: "the rules '\(rules)' are no rules of faults",
                remedy: "'ubd add -t fault' says what is wrong with them; docs/fault.md lists what they can be",
                option: "rules", value: rules)
        case .faultPlan:
            return .badFile(
                message: "the control file has \(failure.detail) bytes, or can not be written",
                remedy: "let ubd make it ('ubd add -t fault')", index: 1)
        case .offsetUnaligned:
            return option(
                "offset", device.launch?.options.offset ?? 0, "is not a multiple of the block size",
                "give a multiple of it, or a smaller --block-size")
        case .ring where failure.errno == EPERM:
            return .kernelUnsupported(
                message: "io_uring is switched off for the worker (sysctl kernel.io_uring_disabled)",
                remedy: "sysctl kernel.io_uring_disabled=0, or =1 with kernel.io_uring_group=\(workerGID), as root",
                feature: "io_uring")
        default:
            return .failed(
                message: "the worker could not serve (\(failure.step)): \(SystemError.message(failure.errno))",
                remedy: failure.step == .memory || failure.errno == ENOMEM
                    ? "use a smaller depth, fewer queues or a smaller --max-io-size" : "see 'ubd doctor'",
                step: "\(failure.step)", errno: failure.errno == 0 ? nil : Int64(failure.errno))
        }
    }

    private static func option(_ name: String, _ value: UInt64, _ problem: String, _ remedy: String) -> InterfaceError {
        .invalidOption(message: "\(name) \(value) \(problem)", remedy: remedy, option: name, value: "\(value)")
    }
}

/// The kernel's parameters for a geometry.
enum DiskParameters {
    static func make(_ geometry: Geometry, maxIOBytes: UInt32, mode: DataMode = .copy) -> UblkParameters {
        var parameters = UblkParameters()
        // Without a copy users' memory goes to the backing file directly, and direct I/O needs it aligned to sectors at
        // least. The driver's default would allow any four bytes.
        if mode.isZeroCopy { parameters.dmaAlignmentMask = 511 }
        if geometry.attributes.contains(.readOnly) { parameters.attributes.insert(.readOnly) }
        if geometry.attributes.contains(.rotational) { parameters.attributes.insert(.rotational) }
        if geometry.attributes.contains(.volatileCache) {
            parameters.attributes.insert(.volatileCache)
            // The kernel honours it only together with the cache.
            if geometry.attributes.contains(.fua) { parameters.attributes.insert(.fua) }
        }
        parameters.logicalBlockShift = UInt8(geometry.logicalBlock.trailingZeroBitCount)
        parameters.physicalBlockShift = UInt8(geometry.physicalBlock.trailingZeroBitCount)
        parameters.minimumIOShift = parameters.physicalBlockShift
        parameters.optimalIOShift = parameters.physicalBlockShift
        parameters.maxSectors = maxIOBytes >> 9
        parameters.diskSectors = geometry.size >> 9
        if geometry.discardGranularity > 0 || geometry.maxWriteZeroesSectors > 0 {
            parameters.discard = UblkParameters.Discard(
                // The driver requires a granularity even if only write-zeroes is supported (ublk_validate_params).
                granularity: max(geometry.discardGranularity, geometry.logicalBlock),
                maxDiscardSectors: geometry.maxDiscardSectors,
                maxWriteZeroesSectors: geometry.maxWriteZeroesSectors)
        }
        return parameters
    }
}

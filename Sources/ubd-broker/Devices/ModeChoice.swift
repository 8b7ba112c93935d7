import BrokerInterface
import KernelABI
import Targets
import WorkerProtocol

/// Chooses a device's mode: the requested one, or the best; kernel and access policy must allow it.
struct ModeChoice {
    /// The driver's features.
    let kernel: UblkFeatures
    /// The access rule has zero-copy=yes.
    let zeroCopyGranted: Bool
    /// The rule's text, for the reply.
    let rule: String

    func mode(for plan: AddPlan) throws(InterfaceError) -> DataMode {
        guard let wanted = plan.mode else {
            return plan.target.modes.first { isAllowed($0) && plan.depth >= $0.leastDepth } ?? .copy
        }
        guard plan.target.takes(wanted) else {
            throw .invalidOption(
                message:
                    "mode can not be \(wanted.rawValue): a \(plan.target.name) device's data passes through its worker",
                remedy: "leave --mode out", option: "mode", value: wanted.rawValue)
        }
        let missing = wanted.features.subtracting(kernel)
        guard missing.isEmpty else {
            let names = missing.nameList.joined(separator: ",")
            throw .kernelUnsupported(
                message: "this kernel's ublk driver can not do mode \(wanted.rawValue): it lacks \(names)",
                remedy: "leave --mode out for the best that it can do, or use \(wanted.since) or later",
                feature: names)
        }
        guard !wanted.isZeroCopy || zeroCopyGranted else {
            throw .notPermitted(
                message: "mode \(wanted.rawValue) is not permitted: your access rule does not say zero-copy=yes",
                remedy: "leave --mode out for the best that you may have, or ask the administrator", rule: rule)
        }
        guard plan.depth >= wanted.leastDepth else {
            throw .invalidOption(
                message: "mode \(wanted.rawValue) can not have depth \(plan.depth): the kernel takes batches from "
                    + "depth \(wanted.leastDepth)", remedy: "leave --mode out, or use a greater depth", option: "depth",
                value: "\(plan.depth)")
        }
        return wanted
    }

    private func isAllowed(_ mode: DataMode) -> Bool {
        kernel.isSuperset(of: mode.features) && (!mode.isZeroCopy || zeroCopyGranted)
    }
}

extension DataMode {
    /// The features to request in ADD_DEV.
    var features: UblkFeatures {
        var features: UblkFeatures = []
        if isZeroCopy { features.formUnion([.supportZeroCopy, .autoBufferRegistration]) }
        if isBatch { features.insert(.batchIO) }
        return features
    }

    /// The minimum depth for ADD_DEV: the driver keeps a queue's waiting tags in a kfifo, which cannot be created for a
    /// single one (ublk_drv.c, seen on 7.3.4: EINVAL).
    fileprivate var leastDepth: UInt16 { isBatch ? 2 : 1 }

    /// The flags for the worker.
    var launchFlags: LaunchMessage.Flags {
        var flags: LaunchMessage.Flags = []
        if isZeroCopy { flags.insert(.zeroCopy) }
        if isBatch { flags.insert(.batch) }
        return flags
    }

    /// The first kernel with this mode.
    fileprivate var since: String { isBatch ? "Linux 7.0" : "Linux 6.16" }
}

extension LaunchMessage {
    var mode: DataMode {
        switch (flags.contains(.zeroCopy), flags.contains(.batch)) {
        case (false, false): .copy
        case (true, false): .zeroCopy
        case (false, true): .batch
        case (true, true): .batchZeroCopy
        }
    }
}

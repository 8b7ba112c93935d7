import Glibc
import KernelABI

/// What the kernel's answer to a control command means. Only this table interprets its errnos. An errno that it does
/// not name never counts as success.
enum ControlVerdict: Equatable {
    /// The kernel executed the command.
    case done
    /// The device or disk does not exist any more.
    case gone
    /// ADD_DEV: another device has the number.
    case taken
    /// Impossible now, and nothing changed: the command may be sent again.
    case again
    /// The kernel or the device does not support the command; nothing changed.
    case unsupported
    /// Refused; nothing changed.
    case refused
    /// The command may have been executed, fully or in part.
    case unknown
}

extension ControlAnswer {
    /// Source: ublk_ctrl_uring_cmd and the functions that it calls, in the kernel's drivers/block/ublk_drv.c. A command
    /// that is cancelled while it waits returns EINTR.
    func verdict(on operation: UblkControlOperation) -> ControlVerdict {
        if errno == 0 { return .done }
        let isUndecided = isTimeout || errno == EINTR
        switch operation {
        case .getQueueAffinity, .getDeviceInfo, .getDeviceInfo2, .getParameters, .getFeatures:
            return verdictOnQuestion
        case .addDevice:
            return errno == EEXIST ? .taken : isUndecided ? .unknown : .refused
        case .setParameters, .startDevice, .endUserRecovery, .updateSize:
            return errno == ENODEV ? .gone : isUndecided ? .unknown : .refused
        case .startUserRecovery:
            switch errno {
            case ENODEV: return .gone
            // Until the last reference to the control node is gone (docs/kernel-facts.md#last-reference).
            case EBUSY: return .again
            // The ring could not take it: the driver allocates nothing for it.
            case ENOMEM, EAGAIN: return .again
            case EOPNOTSUPP: return .unsupported
            default: return isUndecided ? .unknown : .refused
            }
        case .tryStopDevice:
            switch errno {
            case ENODEV: return .gone
            // Somebody has the disk open.
            case EBUSY: return .again
            case EOPNOTSUPP: return .unsupported
            default: return isUndecided ? .unknown : .refused
            }
        case .quiesceDevice:
            switch errno {
            case ENODEV: return .gone
            // The device was not added with this feature.
            case EOPNOTSUPP, EINVAL: return .unsupported
            // The kernel holds back new requests before it waits for those in flight, so it may hold them back now.
            default: return .unknown
            }
        case .stopDevice:
            return errno == ENODEV ? .gone : isTimeout ? .unknown : .again
        case .deleteDevice, .deleteDeviceAsync:
            switch errno {
            case ENODEV, ENOENT: return .gone
            case EOPNOTSUPP: return .unsupported
            default: return isTimeout ? .unknown : .again
            }
        }
    }

    /// A query changes nothing, so it may be sent again when the kernel could not answer it.
    private var verdictOnQuestion: ControlVerdict {
        if isTimeout { return .again }
        switch errno {
        case ENODEV: return .gone
        case EOPNOTSUPP: return .unsupported
        case EINTR, EAGAIN, EBUSY, ENOMEM: return .again
        default: return .refused
        }
    }

    private var isTimeout: Bool {
        if case .timedOut = self { return true }
        return errno == ETIMEDOUT
    }
}

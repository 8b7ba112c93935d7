import Glibc
import KernelABI

/// What follows from the kernel's answer to a control command. This is the one place where its errnos are judged; what is not
/// named here is never taken for success.
enum ControlVerdict: Equatable {
    /// The kernel did it.
    case done
    /// It has no such device, or no such disk, any more.
    case gone
    /// ADD_DEV: somebody else's device has the number.
    case taken
    /// Not now, and nothing was changed: the same command may be sent again.
    case again
    /// This kernel, or this device, does not have the command; nothing was changed.
    case unsupported
    /// No; nothing was changed.
    case refused
    /// Nobody can tell whether it was done, or half done.
    case unknown
}

extension ControlAnswer {
    /// Source: ublk_ctrl_uring_cmd and what it calls in the kernel's drivers/block/ublk_drv.c; EINTR is what a command says that
    /// was cancelled while it waited.
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
            // Until the last reference to the device's control node is gone.
            case EBUSY: return .again
            case EOPNOTSUPP: return .unsupported
            default: return isUndecided ? .unknown : .refused
            }
        case .tryStopDevice:
            switch errno {
            case ENODEV: return .gone
            // Somebody has it open.
            case EBUSY: return .again
            case EOPNOTSUPP: return .unsupported
            default: return isUndecided ? .unknown : .refused
            }
        case .quiesceDevice:
            switch errno {
            case ENODEV: return .gone
            // The device was not added for it.
            case EOPNOTSUPP, EINVAL: return .unsupported
            // The kernel keeps new requests back before it waits for those under way: it may do so now.
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

    /// A question changes nothing, so it may be asked again when the kernel could not answer it just now.
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

import BrokerInterface
import Glibc
import KernelABI
import SystemCalls

/// The way to the kernel's driver, opened when it is first needed: a broker may be started before the module is loaded.
final class Driver {
    private let open: () throws(SystemError) -> any ControlDevice
    /// nil until `ready` succeeded once.
    private(set) var opened: (any ControlDevice)?

    init(open: @escaping () throws(SystemError) -> any ControlDevice) {
        self.open = open
    }

    /// The control device, or the reason why there is none and what to do.
    func ready() throws(InterfaceError) -> any ControlDevice {
        if let opened { return opened }
        do {
            let device = try open()
            opened = device
            return device
        } catch {
            throw Driver.explain(error)
        }
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

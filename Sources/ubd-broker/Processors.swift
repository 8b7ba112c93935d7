import BrokerInterface
import Policy
import SystemCalls

/// The processors on which workers may run.
extension Broker {
    /// nil when the kernel does not tell.
    private var onlineCPUs: CPUList? {
        guard let bytes = try? readFile("\(sysfs)/devices/system/cpu/online") else { return nil }
        return CPUList(String(decoding: bytes.split(separator: UInt8(ascii: "\n")).first ?? [], as: UTF8.self))
    }

    /// Refuses a line whose processors are all offline: its worker would run on others.
    func demandOnline(anyOf rule: AccessRule) throws(InterfaceError) {
        guard let allowed = rule.limits.cpus, let online = onlineCPUs, allowed.intersection(online.list).isEmpty
        else { return }
        throw .notPermitted(
            message: "no processor of cpus=\(allowed.text) of line \(rule.location.line) of "
                + "\(configuration.accessPolicy) is online",
            remedy: "ask the administrator for some of \(online.text)", rule: rule.text)
    }

    /// Refuses processors that are offline. A processor that goes offline later only costs speed.
    func demandOnline(_ cpus: CPUList?) throws(InterfaceError) {
        guard let cpus, let online = onlineCPUs, let missing = cpus.first(notIn: online) else { return }
        throw .invalidOption(
            message: "cpus can not be '\(cpus.text)': CPU \(missing) is not online",
            remedy: "give some of \(online.text)", option: "cpus", value: cpus.text)
    }
}

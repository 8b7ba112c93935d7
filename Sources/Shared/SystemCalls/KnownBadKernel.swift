/// A kernel whose ublk driver is known to take the host down.
///
/// The list is for kernels that no program can use safely: their commands crash or hang the host whatever a server does.
/// A fault that ubd can avoid is avoided instead.
public struct KnownBadKernel: Equatable, Sendable {
    /// The beginning of the release (uname -r), up to where a digit may not follow.
    public let release: String
    /// What happens, for messages.
    public let fault: String
    /// What to run instead, for messages.
    public let remedy: String
    /// Where the fault is reported to the public.
    public let report: String

    /// Every one that is known, each with its public report.
    public static let all: [KnownBadKernel] = [
        KnownBadKernel(
            release: "6.17.0-1015-azure", fault: "ADD_DEV crashes the kernel",
            remedy: "boot another kernel of this host, for example Ubuntu's linux-image-generic",
            report: "github.com/actions/runner-images/issues/14175"),
        KnownBadKernel(
            release: "6.17.0-1018-azure", fault: "ADD_DEV crashes the kernel",
            remedy: "boot another kernel of this host, for example Ubuntu's linux-image-generic",
            report: "github.com/actions/runner-images/issues/14175"),
        KnownBadKernel(
            release: "6.18.4", fault: "ublk devices crash the kernel",
            remedy: "boot Linux 6.18.6 or later, which has the fix", report: "github.com/kvcache-ai/AgentENV/issues/20"),
        KnownBadKernel(
            release: "6.18.5", fault: "ublk devices crash the kernel",
            remedy: "boot Linux 6.18.6 or later, which has the fix", report: "github.com/kvcache-ai/AgentENV/issues/20"),
        KnownBadKernel(
            release: "7.0.0-28", fault: "START_DEV never ends when devices come and go",
            remedy: "boot another kernel of this host", report: "github.com/e2b-dev/ublk-churn-repro"),
    ]

    /// The entry for a release such as "6.18.4+deb14-amd64"; nil when none is known to be bad.
    public static func entry(for release: String) -> KnownBadKernel? {
        all.first { bad in
            guard release.hasPrefix(bad.release) else { return false }
            // 6.18.4 is not 6.18.40.
            return !(release.dropFirst(bad.release.count).first?.isASCIIDigit ?? false)
        }
    }
}

extension Character {
    fileprivate var isASCIIDigit: Bool { isASCII && isNumber }
}

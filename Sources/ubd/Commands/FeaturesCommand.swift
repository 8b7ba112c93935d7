import ArgumentParser
import BrokerInterface
import Varlink

/// `ubd features`: what the kernel's driver offers.
struct FeaturesCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "features", abstract: "Show the features of the kernel's ublk driver.",
        discussion: """
            HERE: this kernel has it. USED: ubd uses it where the kernel has it. SINCE: the first Linux release with it.
            """)

    @OptionGroup var output: OutputOptions

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let bits = try BrokerClient(environment: environment).info().featureBits
        if output.asJSON {
            environment.console.out(Self.json(bits).indentedText)
        } else {
            for line in Self.lines(bits) { environment.console.out(line) }
        }
        return .success
    }

    static func lines(_ bits: UInt64) -> [String] {
        var table = Table(header: ["BIT", "NAME", "HERE", "USED", "SINCE", "MEANING"])
        table.rows = KernelFeature.all.map { feature in
            [
                String(feature.bit), feature.name, bits & feature.mask != 0 ? "yes" : "no",
                feature.used ? "yes" : "no", feature.since, feature.meaning,
            ]
        }
        table.rows += unknown(bits).map { [String($0), "unknown", "yes", "no", "", "Newer than this program"] }
        return table.lines
    }

    static func json(_ bits: UInt64) -> JSON {
        let known = KernelFeature.all.map { feature in
            JSON.record([
                ("bit", .integer(Int64(feature.bit))), ("name", .string(feature.name)),
                ("here", .bool(bits & feature.mask != 0)), ("used", .bool(feature.used)),
                ("since", .string(feature.since)), ("meaning", .string(feature.meaning)),
            ])
        }
        let others = unknown(bits).map { bit in
            JSON.record([("bit", .integer(Int64(bit))), ("here", true), ("used", false)])
        }
        return .array(known + others)
    }

    private static func unknown(_ bits: UInt64) -> [Int] {
        let left = KernelFeature.unknownBits(in: bits)
        return (0..<64).filter { left & (1 << UInt64($0)) != 0 }
    }
}

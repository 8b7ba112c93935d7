import SystemCalls

/// The holder of a disk, for a message. A process of its own looks for it, as with `DeviceFlush`: reading the host's
/// table of mounts can take long, or for ever (btrfs reads the name of a subvolume from its disk).
enum HolderName {
    /// The helper's output.
    static func report(_ holding: Holding) -> String {
        switch holding {
        case .free: "free"
        case .held(let holder): "held \(holder.printable)"
        case .unknown(let why): "unknown \(why.printable)"
        }
    }

    /// `disk`: the kernel's name of the disk. `executable`: this program.
    static func find(_ disk: String, executable: String, deadline: Deadline) -> Holding {
        do throws(SystemError) {
            let helper = try HelperProcess(executable, ["ubd", NameHolderCommand._commandName, "--", disk])
            guard let line = try helper.output(most: 1 << 14, deadline) else {
                return .unknown("the host's mounts could not be read within \(deadline.seconds) s")
            }
            return holding(line.text)
        } catch { return .unknown("\(error)") }
    }

    static func holding(_ line: String) -> Holding {
        let words = line.split(separator: " ", maxSplits: 1)
        let rest = words.count > 1 ? String(words[1].prefix { !$0.isNewline }) : ""
        switch words.first?.prefix(while: { !$0.isNewline }) {
        case "free": return .free
        case "held" where !rest.isEmpty: return .held(rest)
        case "unknown" where !rest.isEmpty: return .unknown(rest)
        default: return .unknown("the helper that looks for it ended without an answer")
        }
    }
}

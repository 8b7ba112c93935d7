import ArgumentParser
import BrokerInterface
import Targets

/// The command line of `ubd add`.
struct AddArguments: PlainArguments {
    static let configuration = CommandConfiguration(
        commandName: "add",
        abstract: "Add a device and print its path.",
        discussion: """
            TARGETS
            \(targetHelp)

            EXAMPLES
              ubd add -t loop -f disk.img                      read-only if the file is not writable
              ubd add -t loop -f disk.img --offset 1M --size 512M --read-only
              ubd add -t loop -f disk.img --partition 2        'ubd partitions -f disk.img' shows which there are
              ubd add -t loop -f disk.img --partition all      a device for each, deleted together
              ubd add -t null -n 7 -q 4 -d 64                  /dev/ubdb7, for measurements
              ubd add -t memory --size 512M                    a disk in memory, gone with the device
              ubd add -t nbd --uri nbd://host/export           the export of an NBD server
              ubd add -t nbd -- nbdkit memory 1G               the same, of a server that ubd starts
              ubd add -t crypt -f disk.luks                    asks for the passphrase of a LUKS volume
              ubd add -t loop -f disk.img --enable=data        comes back by itself: see 'ubd enable --help'
              ubd add -t overlay -f base.img                   base.img stays as it is; what is written is thrown away
              ubd add -t fault -f disk.img --rules 'read error=EIO rate=1%'    fails as it is told: see 'ubd fault'
              dev=$(ubd add -t loop -f disk.img) && mkfs.ext4 "$dev"

            You open the file, not the broker: a file that you may not read or write stays closed.
            Ctrl-C undoes an add that has not finished. Notes go to stderr as 'ubd: note: …'.
            On a terminal, a line there says what the device is: size, mode, queues.
            """)

    @Option(
        name: [.short, .long],
        help: ArgumentHelp("What serves the device: \(TargetList.names.joined(separator: ", ")).", valueName: "name"),
        completion: .list(TargetList.names))
    var target: String

    @Option(
        name: [.customShort("n"), .long],
        help: ArgumentHelp("N of /dev/ubdbN. (default: the first free one)", valueName: "id"))
    var number: Int64?

    // Inputs and options of the targets, from their manifests.
    @OptionGroup var ofTarget: TargetArguments

    @Option(
        name: [.short, .long], help: ArgumentHelp("Hardware queues, at most one for each CPU.", valueName: "count"))
    var queues: Int64 = AddPlan.defaultQueues

    @Option(
        name: [.short, .long],
        help: ArgumentHelp(
            "Requests in flight in each queue. (default: \(AddPlan.defaultDepth); several queues of nbd or crypt: "
                + "\(AddPlan.defaultDepthInAll) divided among them, at least \(AddPlan.leastDefaultDepth) each)",
            valueName: "count"))
    var depth: Int64?

    // Named here: ArgumentParser would make --max-iosize from the property's name.
    @Option(
        name: .customLong("max-io-size"),
        help: ArgumentHelp("Largest request, a multiple of 4K. (default: 512K)", valueName: "bytes"))
    var maxIOSize: ByteCount?

    @Flag(help: "Make a read-only device.")
    var readOnly = false

    @Option(
        help: ArgumentHelp(
            "What happens when the device's worker dies: reissue, queue, fail or none. (default: reissue)",
            discussion: RecoveryMode.allCases.map { "\($0.rawValue): \($0.summary)" }.joined(separator: "\n"),
            valueName: "mode"),
        completion: .list(RecoveryMode.allCases.map(\.rawValue)))
    var recovery: String?

    @Option(
        name: .customLong("io-timeout"),
        help: ArgumentHelp(
            "A worker that makes no progress for this time is replaced, 2 to 3600. (default: the broker's, 30)",
            valueName: "seconds"))
    var ioTimeout: Int64?

    @Option(
        help: ArgumentHelp(
            "How data and requests move: copy, zero-copy, batch, batch-zero-copy or auto. (default: auto)",
            discussion: DataMode.allCases.map { "\($0.rawValue): \($0.summary)" }.joined(separator: "\n")
                + "\nauto: the best mode that kernel, target and access policy allow", valueName: "mode"),
        completion: .list(DataMode.allCases.map(\.rawValue) + [DataMode.automatic]))
    var mode: String?

    @Option(
        help: ArgumentHelp(
            "CPUs that the queues' threads may run on, as in 0-1,3. (default: the CPUs from which the kernel gives "
                + "each queue requests)", valueName: "list"))
    var cpus: String?

    @Flag(
        help: ArgumentHelp(
            "Use the file although another device or program uses it.",
            discussion: "Two writers of the same bytes destroy each other's data, unless the content is made for that."
        ))
    var shared = false

    @Option(
        help: ArgumentHelp(
            "The partition of the file that the device is, by its number, or all for a device of each. (loop)",
            discussion:
                "ubd reads the table (GPT or MBR) and refuses partitions that overlap or lie outside the file. --block-size says "
                + "in which sectors an MBR counts. The devices of all get numbers from --number on; 'ubd del' of one deletes all.",
            valueName: "number"), completion: .list(["all"]))
    var partition: String?

    @OptionGroup var dial: DialArguments

    @OptionGroup var key: KeyArguments

    @OptionGroup var layer: LayerArguments

    @Flag(
        name: .customLong("restart-command"),
        help: ArgumentHelp(
            "Start the command behind -- again when it has ended.",
            discussion:
                "Data that it had acknowledged and not yet written is lost then, and no user of the device is told."))
    var restartCommand = false

    @Option(
        help: ArgumentHelp(
            "A name for the device: udev makes the link /dev/disk/by-ubd/NAME, of users UID:NAME. (default with --enable: that name)",
            valueName: "name"))
    var name: String?

    @Option(
        defaultAsFlag: "", parsing: .next,
        help: ArgumentHelp(
            "Let the device come back by itself at boot or login, under this name: see 'ubd enable'. (default: the file's name)",
            valueName: "name"))
    var enable: String?

    @OptionGroup var output: OutputOptions

    @Argument(
        parsing: .postTerminator,
        help: ArgumentHelp(
            "A server that runs for the device, as you: it gets a listening socket as systemd passes one, and ends with the "
                + "device. (nbd)", valueName: "command"))
    var server: [String] = []

    var command: AddCommand {
        AddCommand(
            target: target, number: number, ofTarget: ofTarget, queues: queues, depth: depth, maxIOSize: maxIOSize,
            readOnly: readOnly, recovery: recovery, ioTimeout: ioTimeout, mode: mode, cpus: cpus, shared: shared,
            partition: partition, dial: dial.options, key: key.options, layer: layer.options,
            restartCommand: restartCommand, server: server, name: name, enable: enable, asJSON: output.asJSON)
    }

    /// The manifests as text: help and checks have one source.
    private static var targetHelp: String {
        TargetList.all.map { target in
            let inputs = target.givenInputs.map { row("--" + $0.name, $0.help) }
            let options = target.givenOptions.map { option in
                row("--" + option.name, "\(option.help): \(option.range) (default: \(option.defaultText))")
            }
            return (["  \(target.name): \(target.summary)"] + inputs + options).joined(separator: "\n")
        }.joined(separator: "\n")
    }

    private static func row(_ name: String, _ text: String) -> String {
        "    \(name)\(String(repeating: " ", count: max(14 - name.count, 1)))\(text)"
    }
}

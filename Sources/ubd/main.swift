import Glibc
import SystemCalls

resetInheritedSignals()
exit(CommandLineTool.run(Array(TypedText.arguments().dropFirst()), .live()))

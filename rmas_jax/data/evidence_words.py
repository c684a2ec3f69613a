"""Names of persons and places for split evidence.

Every third name of a list belongs to one split, so that splits share none and are alike.
"""

PERSONS = """
Aaron Abigail Adam Adele Agnes Alan Albert Alice Amanda Amy Andrea Andrew
Angela Anna Anthony Arthur Audrey Barbara Beatrice Ben Benjamin Bernard Betty Boris
Brenda Brian Bruce Caleb Carl Carmen Carol Caroline Catherine Charles Charlotte Chris
Clara Claire Colin Connor Cora Craig Cynthia Daisy Daniel David Dean Deborah
Dennis Diana Donald Dora Doris Dorothy Douglas Duncan Dylan Edith Edward Eleanor
Elena Elizabeth Ella Ellen Elsa Emily Emma Eric Ernest Esther Ethan Eugene
Eva Evelyn Felix Fiona Florence Frances Frank Frederick Gabriel George Gerald Gloria
Gordon Grace Gregory Greta Hannah Harold Harriet Harry Hazel Heather Helen Henry
Herbert Howard Hugo Ian Ida Irene Isaac Isabel Ivan Jack Jacob James
Jane Janet Jason Jean Jennifer Jeremy Jessica Joan Joel John Jonathan Joseph
Joshua Joyce Judith Julia Julian Karen Karl Kate Keith Kenneth Kevin Laura
Lawrence Leah Leo Leon Leonard Liam Linda Lisa Logan Louis Louise Lucas
Lucy Luke Lydia Marcus Margaret Maria Marion Mark Martha Martin Mary Matthew
Maurice Max Megan Melissa Michael Miriam Monica Nancy Naomi Nathan Nicholas Nina
Noah Nora Norman Oliver Olivia Oscar Owen Pamela Patrick Paul Paula Peter
Philip Rachel Ralph Raymond Rebecca Richard Robert Roger Roland Ronald Rosa Ruth
Ryan Samuel Sandra Sarah Simon Sophia Stella Stephen Susan Teresa Thomas Victor
""".split()

# Each stands after "in the" or "of the".
PLACES = """
kitchen garden office cellar library attic garage bakery museum hospital school church
factory stable tower market station airport hotel theatre cinema bank castle cabin
cottage barn chapel mill brewery laboratory studio workshop warehouse gallery gym pantry
hallway bedroom bathroom nursery lounge closet basement courtyard yard orchard meadow forest
valley desert canyon cave tunnel mine quarry swamp jungle park zoo aquarium
stadium arena pool sauna spa clinic pharmacy prison jail court embassy palace
mansion villa bungalow hut tent lodge inn tavern pub bar restaurant diner
canteen cafeteria store shop mall boutique salon laundry depot dock shipyard port
lighthouse bunker fort barracks academy college university classroom auditorium chamber parlour den
vault archive greenhouse shed granary dairy vineyard winery distillery foundry forge refinery
kennel monastery abbey convent temple shrine mosque cathedral crypt cemetery square village
town suburb arcade casino nightclub ballroom lobby elevator corridor marsh prairie ruin
""".split()

SURNAMES = """
Abbott Adkins Ashford Atwood Baker Baldwin Barlow Barrett Baxter Bennett Bentley Bishop
Blackwell Bolton Bowman Bradford Bradley Brewer Bristow Brooks Burgess Burton Butler Calder
Carlisle Carter Carver Chandler Chapman Clayton Clifton Coleman Collins Conway Cooper Crawford
Crosby Dalton Davenport Dawson Denton Dixon Drayton Dudley Eaton Ellison Emerson Everett
Fairfax Farley Fenton Fielding Fisher Fleming Foster Fowler Franklin Fuller Gardner Garland
Gibson Gilbert Goodwin Graham Granger Grayson Griffin Hamilton Hammond Harding Harper Harrison
Hawkins Hayward Henderson Hewitt Holland Holmes Hopkins Horton Houston Hudson Hughes Hutton
Jackson Jarvis Jenkins Jennings Johnson Keller Kendall Kingsley Lambert Langley Larson Lawson
Leighton Lindsay Lockwood Lowell Madison Marlow Marsden Marshall Mason Maxwell Merton Milton
Mitchell Monroe Morgan Morton Nelson Newman Newton Norris Norton Osborne Parker Patterson
Pearson Perkins Porter Preston Quincy Radcliffe Ramsey Randall Reynolds Robinson Rowland Russell
Sawyer Shelton Sheldon Simpson Spencer Stafford Sutton Tanner Thornton Turner Wallace Webster
""".split()

"""The fixed texts of bench/quality.py: prose, dialogue, code and seven languages, written for it."""

TEXTS: dict[str, str] = {
    "story": """The lamp in the kitchen was still burning when Anna came home. Her brother sat at the table
with a map in front of him and did not look up. "You are late," he said. "The boat leaves at six." She put
her wet coat over the chair and looked at the map. A thin red line went from the harbour around the island
and ended in the open sea, where there was nothing but water. "And what do we do when we are there?" she
asked. He folded the map and put it into his pocket. "We wait," he said, "until somebody comes.\"""",
    "encyclopedia": """Photosynthesis is the process by which plants, algae and some bacteria turn light into
chemical energy. In plants it takes place in the chloroplasts, which contain the green pigment chlorophyll.
Light is absorbed, water is split into oxygen, protons and electrons, and the energy that is released is
stored in molecules of ATP and NADPH. In a second stage, known as the Calvin cycle, carbon dioxide from the
air is used to build sugars. The oxygen that we breathe is a by-product of this process. The rate of
photosynthesis depends on the temperature, the amount of light and the concentration of carbon dioxide.""",
    "advice": """To bake bread at home you need only four ingredients: flour, water, salt and yeast. First,
mix the flour and the salt in a large bowl. Then dissolve the yeast in warm water and pour it into the
flour. Knead the dough for about ten minutes, until it is smooth and elastic. Cover the bowl with a towel
and let the dough rise in a warm place for an hour, or until it has doubled in size. Shape it into a loaf,
let it rise again for thirty minutes, and bake it at 220 degrees for about half an hour. The bread is done
when it sounds hollow as you knock on the bottom.""",
    "chat": """<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
<|im_start|>user
Why is the sky blue, and why is it red in the evening?<|im_end|>
<|im_start|>assistant
The sky is blue because of a phenomenon called Rayleigh scattering. Sunlight contains all colors, and the
molecules of the air scatter light of short wavelengths, such as blue, much more than light of long
wavelengths, such as red. In the evening the light has to travel a longer way through the atmosphere. Most
of the blue light is scattered out of our line of sight, and what reaches our eyes is mostly red and
orange.<|im_end|>""",
    "python": '''def merge_sort(values):
    """Return a sorted copy of the list."""
    if len(values) <= 1:
        return list(values)
    middle = len(values) // 2
    left = merge_sort(values[:middle])
    right = merge_sort(values[middle:])
    merged = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    merged.extend(left[i:])
    merged.extend(right[j:])
    return merged
''',
    "c": """#include <stdio.h>
#include <stdlib.h>

struct node {
    int value;
    struct node *next;
};

struct node *push(struct node *head, int value)
{
    struct node *new_node = malloc(sizeof(struct node));
    if (new_node == NULL)
        return head;
    new_node->value = value;
    new_node->next = head;
    return new_node;
}

int main(void)
{
    struct node *head = NULL;
    for (int i = 0; i < 10; i++)
        head = push(head, i);
    for (struct node *n = head; n != NULL; n = n->next)
        printf("%d\\n", n->value);
    return 0;
}
""",
    "arithmetic": """Question: A train leaves the station at 9:15 and arrives at 11:45. It travels 200 km.
What is its average speed? Answer: The journey takes 2 hours and 30 minutes, which is 2.5 hours. The average
speed is the distance divided by the time: 200 / 2.5 = 80. So the average speed is 80 km/h. Question: A shop
sells apples for 3 dollars a kilogram. How much do 4.5 kilograms cost? Answer: 4.5 * 3 = 13.5. So they cost
13.50 dollars.""",
    "french": """La ville de Lyon se trouve au confluent du Rhône et de la Saône. Elle est connue pour sa
cuisine, pour ses vieilles maisons et pour la fête des Lumières, qui a lieu chaque année au mois de
décembre. Pendant quatre jours, les habitants mettent des bougies à leurs fenêtres.""",
    "german": """Im Winter wird es in den Bergen früh dunkel. Die Kinder kommen mit ihren Schlitten nach
Hause, und in den Fenstern brennt Licht. Am Abend erzählt die Großmutter eine Geschichte, die alle schon
kennen, und trotzdem will niemand ins Bett gehen.""",
    "spanish": """El agua es una sustancia esencial para la vida. Cubre la mayor parte de la superficie de la
Tierra y se encuentra en los océanos, los ríos, los lagos y los glaciares. Todos los seres vivos necesitan
agua para vivir.""",
    "japanese": """東京は日本の首都であり、世界で最も人口の多い都市の一つです。春には桜が咲き、
多くの人が公園でお花見をします。""",
    "chinese": """北京是中国的首都，也是一座有三千多年历史的城市。每年有很多游客来到这里参观长城和故宫。""",
    "russian": """Москва является столицей России и крупнейшим городом страны. Через город протекает река,
которая дала ему своё имя.""",
    "arabic": """القاهرة هي عاصمة مصر وأكبر مدينة في العالم العربي. يمر نهر النيل عبر المدينة.""",
}
